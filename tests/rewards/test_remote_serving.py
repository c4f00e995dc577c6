"""The remote judge against a real server: `transformers serve` with a tiny model on loopback.

The model writes stories whatever it is asked, so that its answers are told apart by a parser of the
test's own. What is tested is that each row gets the answer that the server gives to it.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import httpx2
import numpy as np
import pytest

from nspo_jax.data.conversation import Conversation
from nspo_jax.rewards import judge_cache, judge_client, remote
from tests.rewards import fault_proxy

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
STARTS = ("Once upon a time", "One day", "The dog", "Tom and Sue", "There was a", "She said")
ROWS = [Conversation(start, "", "story", "harmful") for start in STARTS for _ in range(8)]
COMPLETIONS = [f" {word}" for _ in STARTS for word in "ball cat tree mom park bird sun red".split()]
ANSWER_TOKENS = 8


class Server(NamedTuple):
    """A server that is up: its url without a path, its model's name, its process."""

    url: str
    model: str
    process: subprocess.Popen


def question(prompt, completion):
    return [{"role": "user", "content": prompt + completion}]


def parse(text):
    """A number in [-1, 0] that tells stories apart."""
    return -sum(text.encode()) % 101 / 100 - 1


@pytest.fixture(scope="module")
def server(shared_data, tmp_path_factory):
    """A server with the tiny model, which has no chat template of its own."""
    pytest.importorskip("fastapi", reason="transformers serve needs requirements-test.txt")
    folder = tmp_path_factory.mktemp("serving")
    model = folder / "tinystories"
    shutil.copytree(
        shared_data / "checkpoints" / "tinystories-260k", model, copy_function=shutil.copyfile
    )
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [pathlib.Path(sys.executable).parent / "transformers", "serve", model]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    made = Server(f"http://127.0.0.1:{port}", str(model), process)
    try:
        fault_proxy.wait_until(lambda: is_up(made, log), 120)
        yield made
    finally:
        process.kill()
        process.wait()


def is_up(server, log):
    assert server.process.poll() is None, log.read_text()
    with contextlib.suppress(httpx2.TransportError):
        return httpx2.get(f"{server.url}/health").is_success
    return False


@pytest.fixture(scope="module")
def direct(server):
    """The rewards of the answers that the server gives to each row without anything between."""
    answer = fault_proxy.forward_to(server.url)
    texts = []
    for row, completion in zip(ROWS, COMPLETIONS, strict=True):
        body = {
            "model": server.model,
            "messages": question(row.prompt, completion),
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
            "seed": 0,
        }
        code, content = answer(body)
        assert code == 200, content
        texts.append(json.loads(content)["choices"][0]["message"]["content"])
    assert len(set(texts)) > len(texts) // 2  # or equal rewards would say nothing
    return np.float32([parse(text) for text in texts])


def judge(url, server, folder, **options):
    given = dict(backoff=0.02, longest_backoff=0.2, timeout=30.0, down_after=60.0)
    client = judge_client.JudgeClient(
        url, server.model, max_tokens=ANSWER_TOKENS, **{**given, **options}
    )
    return remote.RemoteJudge(
        client, judge_cache.JudgeCache(folder), question=question, parse=parse
    )


def test_without_faults(server, direct, tmp_path):
    rewards, details = judge(f"{server.url}/v1", server, tmp_path)(ROWS, COMPLETIONS)
    np.testing.assert_array_equal(rewards, direct)
    assert not details["retries"].any() and not details["cached"].any()


def test_through_faults_and_a_server_that_is_gone_for_a_while(server, direct, tmp_path):
    faults = [
        fault_proxy.status(429, Retry_After="1"),
        fault_proxy.status(500),
        fault_proxy.garbage,
        fault_proxy.half_body,
        fault_proxy.half_chunks,
        fault_proxy.reset,
        fault_proxy.wrong_schema,
        fault_proxy.status(503),
        fault_proxy.slow(0.2),
        None,
    ] * 3
    with fault_proxy.FaultProxy(fault_proxy.forward_to(server.url), faults) as proxy:
        interrupt = threading.Thread(
            target=lambda: (
                fault_proxy.wait_until(lambda: len(proxy.requests) > 40, 60),
                proxy.down_for(1.0),
            )
        )
        interrupt.start()
        judged = judge(proxy.url, server, tmp_path, concurrency=4, retries=100)
        rewards, details = judged(ROWS, COMPLETIONS)
        interrupt.join()
        fault_proxy.wait_until(lambda: proxy.is_up)
        asked = len(proxy.requests)
        np.testing.assert_array_equal(rewards, direct)
        assert details["retries"].sum() >= 24 and proxy.busiest <= 4
        again, details = judge(proxy.url, server, tmp_path)(ROWS, COMPLETIONS)
        np.testing.assert_array_equal(again, direct)
        assert details["cached"].all() and len(proxy.requests) == asked


def test_a_server_that_hangs_for_a_while(server, direct, tmp_path):
    server.process.send_signal(signal.SIGSTOP)
    awake = threading.Timer(2.0, lambda: server.process.send_signal(signal.SIGCONT))
    awake.start()
    try:
        start = time.monotonic()
        judged = judge(
            f"{server.url}/v1", server, tmp_path, concurrency=2, timeout=1.0, retries=100
        )
        rewards, _ = judged(ROWS[:6], COMPLETIONS[:6])
    finally:
        awake.join()
    np.testing.assert_array_equal(rewards, direct[:6])
    assert time.monotonic() - start > 1.5


def test_stories_are_no_verdicts(server, tmp_path):
    """The question and the parser of every run: what does not say safe or unsafe is NaN."""
    client = judge_client.JudgeClient(f"{server.url}/v1", server.model, max_tokens=8, asks=1)
    judged = remote.RemoteJudge(client, judge_cache.JudgeCache(tmp_path))
    rewards, details = judged(ROWS[:2], COMPLETIONS[:2])
    assert np.isnan(rewards).all() and np.isnan(details["unsafe"]).all()
    assert not list(tmp_path.iterdir())


def test_a_wrong_model_name_is_told(server, tmp_path):
    wrong = server._replace(model="no-such-model")
    with pytest.raises(judge_client.JudgeRequestError, match="no-such-model"):
        judge(f"{server.url}/v1", wrong, tmp_path)(ROWS[:1], COMPLETIONS[:1])


def test_the_end_of_the_server_is_told(server, tmp_path):
    """The last test here: it ends the server. What was answered before is still there."""
    judged = judge(f"{server.url}/v1", server, tmp_path, down_after=0.5)
    before, _ = judged(ROWS[:2], COMPLETIONS[:2])
    server.process.kill()
    server.process.wait()
    with pytest.raises(judge_client.JudgeDownError, match="ConnectError"):
        judged(ROWS, COMPLETIONS)
    after, _ = judged(ROWS[:2], COMPLETIONS[:2])
    np.testing.assert_array_equal(after, before)
