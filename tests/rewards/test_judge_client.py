"""The judge's client against a server that misbehaves in every way it may."""

import itertools
import signal
import subprocess
import sys
import threading
import time

import pytest

from nspo_jax.rewards import judge_client
from tests.rewards import fault_proxy
from tests.rewards.asking import anything, client, echo, questions, right, texts


def test_what_is_sent():
    with fault_proxy.FaultProxy(echo) as proxy:
        asked = client(proxy, max_tokens=7, seed=3)
        assert texts(asked.ask(questions(1), anything)) == right(1)
    assert proxy.requests == [
        {
            "model": "judge",
            "messages": questions(1)[0],
            "temperature": 0,
            "max_tokens": 7,
            "seed": 3,
        }
    ]
    assert not {"authorization", "Authorization"} & proxy.headers[0].keys()


FAULTS = {
    "500": fault_proxy.status(500),
    "500 without a body": fault_proxy.status(500, b""),
    "502 of a gateway": fault_proxy.status(502, b"<html>Bad Gateway</html>"),
    "503": fault_proxy.status(503),
    "529": fault_proxy.status(529),
    "429": fault_proxy.status(429),
    "429 with a date": fault_proxy.status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 with nonsense": fault_proxy.status(429, Retry_After="-1e9"),
    "408": fault_proxy.status(408),
    "409": fault_proxy.status(409),
    "garbage": fault_proxy.garbage,
    "an empty body": fault_proxy.status(200, b""),
    "deep JSON": fault_proxy.status(200, b"[" * 5000),
    "no gzip": fault_proxy.status(200, b"plain", Content_Encoding="gzip"),
    "no choices": fault_proxy.wrong_schema,
    "no object": fault_proxy.status(200, b"[]"),
    "a list for a text": fault_proxy.status(
        200, b'{"choices": [{"message": {"content": ["safe"]}}]}'
    ),
    "half a body": fault_proxy.half_body,
    "half of the chunks": fault_proxy.half_chunks,
    "a reset": fault_proxy.reset,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_outlived(fault):
    with fault_proxy.FaultProxy(echo, [fault, fault]) as proxy:
        (reply,) = client(proxy).ask(questions(1), anything)
    assert (reply.text, reply.requests) == ("QUESTION 0", 3) and len(proxy.requests) == 3


@pytest.mark.parametrize("fault", [fault_proxy.slow(30), fault_proxy.trickle])
def test_the_timeout_is_of_the_whole_request(fault):
    with fault_proxy.FaultProxy(echo, [fault]) as proxy:
        (reply,) = client(proxy, timeout=0.3).ask(questions(1), anything)
    assert (reply.text, reply.requests) == ("QUESTION 0", 2)
    assert 0.3 <= reply.seconds < 3


def test_all_at_once():
    """Faults of every kind among many questions: each answer is the right one."""
    faults = [fault for fault in FAULTS.values() for _ in range(2)]
    with fault_proxy.FaultProxy(echo, faults) as proxy:
        replies = client(proxy, concurrency=8, retries=100).ask(questions(60), anything)
    assert texts(replies) == right(60)
    assert sum(reply.requests for reply in replies) == len(proxy.requests) == 60 + len(faults)


def test_retry_after_is_obeyed():
    with fault_proxy.FaultProxy(echo, [fault_proxy.status(429, Retry_After="1")]) as proxy:
        (reply,) = client(proxy, longest_backoff=9.0).ask(questions(1), anything)
    assert reply.requests == 2 and 1 <= reply.seconds < 3


def test_retry_after_is_capped():
    with fault_proxy.FaultProxy(echo, [fault_proxy.status(503, Retry_After="86400")]) as proxy:
        (reply,) = client(proxy, longest_backoff=0.2).ask(questions(1), anything)
    assert reply.requests == 2 and 0.2 <= reply.seconds < 3


def test_concurrency_is_bounded():
    with fault_proxy.FaultProxy(echo, [fault_proxy.slow(0.02)] * 40) as proxy:
        shared, answers = client(proxy, concurrency=4), []

        def ask():
            answers.append(texts(shared.ask(questions(20), anything)))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [right(20)] * 2 and proxy.busiest == 4


def test_nothing_is_left_behind():
    with fault_proxy.FaultProxy(echo, [fault_proxy.status(500)]) as proxy:
        client(proxy).ask(questions(5), anything)
        # the server sees all connections closed, and its threads end with them
        fault_proxy.wait_until(lambda: not proxy.connections())
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("asyncio")], names


def test_the_budget_is_a_hard_stop():
    accepted = []
    faults = [None, fault_proxy.status(500), None]
    with fault_proxy.FaultProxy(echo, faults) as proxy:
        asked = client(proxy, budget=6, concurrency=1)
        asked.ask(questions(2), lambda index, text: accepted.append(text) or True)
        with pytest.raises(judge_client.JudgeBudgetError, match="6 requests") as caught:
            asked.ask(questions(9), lambda index, text: accepted.append(text) or True)
    assert len(proxy.requests) == 6 and len(accepted) == 5  # what came before was told
    for part in (proxy.url, "rewards.judge.budget is 6", "the same command continues the run"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "code, hint",
    [
        (401, "rewards.judge.api_key_env"),
        (403, "rewards.judge.api_key_env"),
        (404, "rewards.judge.url"),
        (307, "rewards.judge.url"),
    ],
)
def test_errors_of_the_user_are_raised_at_once(code, hint):
    fault = fault_proxy.status(code, b'{"error": {"message": "no such luck"}}', Location="/x")
    with fault_proxy.FaultProxy(echo, [None, fault]) as proxy:
        with pytest.raises(judge_client.JudgeRequestError) as caught:
            client(proxy, concurrency=1).ask(questions(9), anything)
    for part in (str(code), "no such luck", proxy.url, hint):
        assert part in str(caught.value)
    assert len(proxy.requests) == 2


@pytest.mark.parametrize(
    "body, said",
    [
        (b'{"detail": "Server is pinned"}', "Server is pinned"),
        (b'{"detail": [{"loc": ["model"]}]}', "loc"),
        (b'{"message": "flat"}', "flat"),
        (b'{"error": "a string"}', "a string"),
        (b"[1]", "[1]"),
        (b"not JSON", "not JSON"),
        (b"\xff", "\ufffd"),
        (b"x" * 9999, "x" * 500 + "'"),
    ],
)
def test_what_the_server_says_is_found(body, said):
    with fault_proxy.FaultProxy(echo, [fault_proxy.status(404, body)]) as proxy:
        with pytest.raises(judge_client.JudgeRequestError) as caught:
            client(proxy).ask(questions(1), anything)
    assert said in str(caught.value)


def test_a_server_that_is_gone_for_a_while_is_waited_for(caplog):
    with fault_proxy.FaultProxy(echo, [None] * 3) as proxy:
        asked = client(proxy, down_after=9.0, retries=0)
        asked.ask(questions(3), anything)
        proxy.down_for(1.0)
        assert texts(asked.ask(questions(30), anything)) == right(30)
        assert texts(asked.ask(questions(30), anything)) == right(30)
    failing, back = [record.getMessage() for record in caplog.records]
    assert (
        "answered nothing for" in failing and "refused" in failing.lower() or "connect" in failing
    )
    assert "is back after" in back


@pytest.mark.parametrize("fault", [fault_proxy.status(500), fault_proxy.garbage])
def test_a_bad_minute_costs_no_answer(fault):
    """While the judge answers nobody, bad answers do not count against the questions."""
    with fault_proxy.FaultProxy(echo, [fault] * 60) as proxy:
        replies = client(proxy, retries=1, concurrency=4).ask(questions(8), anything)
    assert texts(replies) == right(8)


def test_an_answer_that_was_under_way_does_not_show_that_the_judge_is_well():
    """It was asked for before the trouble began, and comes in the middle of it."""
    faults = [fault_proxy.slow(0.1), *[fault_proxy.status(500)] * 20]
    with fault_proxy.FaultProxy(echo, faults) as proxy:
        replies = client(proxy, retries=0, concurrency=2).ask(questions(2), anything)
    # the last two: a probe that shows that it is well again, and the question
    assert texts(replies) == right(2) and len(proxy.requests) == 23


def test_a_judge_that_is_gone_for_good_is_down():
    with fault_proxy.FaultProxy(echo) as proxy:
        asked = client(proxy, down_after=0.3)
        assert texts(asked.ask(questions(3), anything)) == right(3)
        proxy.down()
        start = time.monotonic()
        with pytest.raises(judge_client.JudgeDownError) as caught:
            asked.ask(questions(50), anything)
        assert 0.3 <= time.monotonic() - start < 3
        proxy.up()
        assert texts(asked.ask(questions(3), anything)) == right(3)
    said = str(caught.value)
    for part in (
        proxy.url,
        "nothing has succeeded for",
        "rewards.judge.down_after is 0.3",
        "ConnectError",
    ):
        assert part in said
    assert "rewards.judge.url" in said and "the same command continues the run" in said


@pytest.mark.parametrize(
    "fault, said",
    [
        (fault_proxy.status(500), "status 500: 'injected'"),
        (fault_proxy.status(429, Retry_After="1"), "status 429"),
        (fault_proxy.garbage, "not JSON"),
        (fault_proxy.wrong_schema, "not a chat completion"),
        (fault_proxy.half_body, "RemoteProtocolError"),
        (fault_proxy.trickle, "no whole answer in 0.05 seconds"),
    ],
)
def test_a_judge_that_answers_nobody_for_good_is_down(fault, said):
    timeout = 0.05 if fault is fault_proxy.trickle else 5.0
    with fault_proxy.FaultProxy(echo, itertools.repeat(fault)) as proxy:
        with pytest.raises(judge_client.JudgeDownError) as caught:
            client(proxy, down_after=0.2, timeout=timeout).ask(questions(5), anything)
    assert said in str(caught.value)


def test_an_answer_that_is_not_accepted_is_asked_again_with_another_seed():
    told = []

    def accept(index, text):
        told.append(index)
        return len(told) == 4

    with fault_proxy.FaultProxy(echo) as proxy:
        given_up, accepted = client(proxy, asks=3, seed=5, concurrency=1).ask(questions(2), accept)
    assert (given_up.text, given_up.requests) == (None, 3)
    assert (accepted.text, accepted.requests) == ("QUESTION 1", 1)
    assert [body["seed"] for body in proxy.requests] == [5, 6, 7, 5]


def test_no_text_is_an_answer():
    """A model that thought until it had no tokens left: asking again changes nothing."""
    reply = 200, b'{"choices": [{"message": {"content": null}}]}'
    with fault_proxy.FaultProxy(lambda body: reply) as proxy:
        assert texts(client(proxy).ask(questions(1), anything)) == [""]


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "", "http://", "http://h:x/v1", "http://h/v1?a=b"]
)
def test_a_url_that_cannot_be_one(url):
    with pytest.raises(ValueError, match="base_url must be like http://host:port/v1"):
        judge_client.JudgeClient(url, "judge")


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_tokens", 0),
        ("asks", 0),
        ("concurrency", 0),
        ("retries", -1),
        ("budget", -1),
        ("timeout", 0),
        ("backoff", 0),
        ("longest_backoff", float("nan")),
        ("down_after", -1),
    ],
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        judge_client.JudgeClient("http://localhost/v1", "judge", **{name: value})


def test_close_ends_what_another_thread_waits_for():
    caught = []
    with fault_proxy.FaultProxy(echo, [fault_proxy.slow(30)]) as proxy:
        asked = client(proxy, timeout=60.0)

        def ask():
            try:
                asked.ask(questions(1), anything)
            except judge_client.JudgeClosedError as error:
                caught.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        fault_proxy.wait_until(lambda: proxy.requests)
        asked.close()
        thread.join(3)
        assert len(caught) == 1 and proxy.url in caught[0]
        with pytest.raises(judge_client.JudgeClosedError):
            asked.ask(questions(1), anything)


PROGRAM = """
import signal, sys, threading
from nspo_jax.rewards import judge_client
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
client = judge_client.JudgeClient(sys.argv[1], "judge")
ask = lambda: client.ask([[{"role": "user", "content": "?"}]], lambda index, text: True)
if sys.argv[2] == "main":
    ask()
thread = threading.Thread(target=ask)
thread.start()
try:
    thread.join()
finally:
    client.close()
"""


@pytest.mark.parametrize(
    "where, number, code",
    [
        ("main", signal.SIGINT, -signal.SIGINT),
        ("thread", signal.SIGINT, -signal.SIGINT),
        ("main", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_signals_do_not_hang(where, number, code):
    with fault_proxy.FaultProxy(echo, [fault_proxy.slow(60)]) as proxy:
        command = [sys.executable, "-c", PROGRAM, proxy.url, where]
        program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        fault_proxy.wait_until(lambda: proxy.requests, 60)
        program.send_signal(number)
        _, said = program.communicate(timeout=10)
    assert program.returncode == code, said
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
