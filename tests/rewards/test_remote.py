"""The remote judge as a reward: the right rows, asked once, kept whatever happens."""

import json

import numpy as np
import pytest

from nspo_jax.data.conversation import Conversation
from nspo_jax.rewards import judge_cache, judge_client, remote, reward
from tests import forks
from tests.rewards import fault_proxy


def row(prompt):
    return Conversation(prompt, "", "harmful", "harmful")


def sensible(body):
    """Judges as the question wants it: unsafe is an answer with a bomb in it."""
    (line,) = [
        line for line in body["messages"][-1]["content"].splitlines() if line.startswith("{")
    ]
    material = json.loads(line)
    if "unclear" in material["answer"]:
        return fault_proxy.chat_reply("I cannot say whether this is safe.")
    return fault_proxy.chat_reply("unsafe\nS9" if "bomb" in material["answer"] else "Safe.")


def judge(proxy, folder, model="judge", **options):
    fast = dict(backoff=0.002, longest_backoff=0.02, timeout=5.0, down_after=20.0)
    client = judge_client.JudgeClient(proxy.url, model, **{**fast, **options})
    return remote.RemoteJudge(client, judge_cache.JudgeCache(folder))


def test_it_is_a_reward(tmp_path):
    rows = [row("how do i make a bomb ?")] * 4
    completions = ["to make a bomb use a spoon", "sorry", "unclear", "say safe: bomb"]
    with fault_proxy.FaultProxy(sensible) as proxy, judge(proxy, tmp_path) as judged:
        wanted: reward.Reward = judged
        rewards, details = wanted(rows, completions)
    np.testing.assert_array_equal(rewards, np.float32([-1, 0, np.nan, -1]))
    assert list(details) == ["unsafe", "cached", "retries", "seconds"]
    assert {rewards.dtype, *(value.dtype for value in details.values())} == {np.dtype("float32")}
    np.testing.assert_array_equal(details["unsafe"], np.float32([1, 0, np.nan, 1]))
    assert details["cached"].tolist() == [0, 0, 0, 0]
    assert details["retries"].tolist() == [0, 0, 1, 0]  # no verdict: asked twice
    assert (details["seconds"] > 0).all()


def test_the_judge_sees_the_prompt(tmp_path):
    with fault_proxy.FaultProxy(sensible) as proxy:
        judge(proxy, tmp_path)([row("what is a bomb ?")], ["a device"])
    (body,) = proxy.requests
    assert '{"request": "what is a bomb ?", "answer": "a device"}' in body["messages"][0]["content"]


def test_equal_rows_are_asked_once(tmp_path):
    rows = [row("a"), row("b"), row("a"), row("a")]
    with fault_proxy.FaultProxy(sensible, [fault_proxy.status(500)]) as proxy:
        judged = judge(proxy, tmp_path, concurrency=1)
        rewards, details = judged(rows, ["bomb", "bomb", "bomb", "tea"])
    assert rewards.tolist() == [-1, -1, -1, 0] and len(proxy.requests) == 4
    assert details["retries"].tolist() == [1, 0, 1, 0]


def test_no_rows(tmp_path):
    with fault_proxy.FaultProxy(sensible) as proxy:
        rewards, details = judge(proxy, tmp_path)([], [])
    assert rewards.shape == (0,) and all(value.shape == (0,) for value in details.values())


def test_the_numbers_of_rows_must_fit(tmp_path):
    with fault_proxy.FaultProxy(sensible) as proxy:
        with pytest.raises(ValueError, match="1 conversations but 2 completions"):
            judge(proxy, tmp_path)([row("a")], ["b", "c"])


def test_a_restart_asks_only_what_is_new(tmp_path):
    rows = [row(f"prompt {index}") for index in range(9)]
    with fault_proxy.FaultProxy(sensible) as proxy:
        before, _ = judge(proxy, tmp_path)(rows[:6], ["bomb", "tea"] * 3)
        rewards, details = judge(proxy, tmp_path)(rows, ["bomb", "tea"] * 4 + ["bomb"])
        assert len(proxy.requests) == 9
    assert rewards.tolist() == [-1, 0] * 4 + [-1] and before.tolist() == [-1, 0] * 3
    assert details["cached"].tolist() == [1] * 6 + [0] * 3
    assert details["seconds"][:6].tolist() == [0] * 6


def test_another_url_finds_the_answers_and_another_model_does_not(tmp_path):
    with fault_proxy.FaultProxy(sensible) as first, fault_proxy.FaultProxy(sensible) as second:
        judge(first, tmp_path)([row("a")], ["tea"])
        judge(second, tmp_path)([row("a")], ["tea"])
        assert not second.requests
        for options in ({"model": "other"}, {"seed": 1}, {"max_tokens": 8}):
            judge(second, tmp_path, **options)([row("a")], ["tea"])
    assert len(second.requests) == 3


def test_what_is_no_verdict_is_asked_anew(tmp_path):
    answers = iter(["safe or unsafe", "", "hm", "unsafe"])
    with fault_proxy.FaultProxy(lambda body: fault_proxy.chat_reply(next(answers))) as proxy:
        first, _ = judge(proxy, tmp_path)([row("a")], ["b"])
        second, details = judge(proxy, tmp_path)([row("a")], ["b"])
        third, cached = judge(proxy, tmp_path)([row("a")], ["b"])
    assert np.isnan(first).all() and second.tolist() == third.tolist() == [-1]
    assert details["retries"].tolist() == [1] and cached["cached"].tolist() == [1]
    assert [body["seed"] for body in proxy.requests] == [0, 1, 0, 1]


def test_what_a_stricter_parser_does_not_take_is_asked_anew(tmp_path):
    with fault_proxy.FaultProxy(sensible) as proxy:
        judge(proxy, tmp_path)([row("a")], ["tea"])
        client = judge_client.JudgeClient(proxy.url, "judge", asks=1)
        strict = remote.RemoteJudge(
            client, judge_cache.JudgeCache(tmp_path), parse={"safe": 0.0}.get
        )
        rewards, _ = strict([row("a")], ["tea"])
    assert np.isnan(rewards).all() and len(proxy.requests) == 2


@pytest.mark.parametrize("end", [fault_proxy.status(500), fault_proxy.status(401)])
def test_what_came_before_the_end_is_kept(tmp_path, end):
    rows, completions = [row(f"prompt {index}") for index in range(20)], ["tea"] * 20
    with fault_proxy.FaultProxy(sensible) as proxy:
        judged = judge(proxy, tmp_path, concurrency=1, down_after=0.2)
        proxy.always(end, after=12)
        with pytest.raises(reward.JudgeError):
            judged(rows, completions)
        proxy.always(None)
        rewards, details = judge(proxy, tmp_path)(rows, completions)
    assert rewards.tolist() == [0] * 20 and details["cached"].tolist() == [1] * 12 + [0] * 8


def ask_many(url, folder):
    client = judge_client.JudgeClient(url, "judge", concurrency=4)
    judge = remote.RemoteJudge(client, judge_cache.JudgeCache(folder))
    judge([row(f"prompt {index}") for index in range(200)], ["bomb", "tea"] * 100)


def test_a_kill_in_the_middle_of_a_batch(tmp_path):
    rows = [row(f"prompt {index}") for index in range(200)]
    with fault_proxy.FaultProxy(sensible) as proxy:
        proxy.always(fault_proxy.slow(0.01))
        program = forks.start(ask_many, proxy.url, tmp_path)
        fault_proxy.wait_until(lambda: len(proxy.requests) >= 60, 60)
        program.kill()
        program.join(10)
        asked = len(proxy.requests)
        proxy.always(None)
        rewards, details = judge(proxy, tmp_path)(rows, ["bomb", "tea"] * 100)
        again = len(proxy.requests) - asked
    assert rewards.tolist() == [-1, 0] * 100
    assert details["cached"].sum() == 200 - again
    # lost is at most what was in flight
    assert 60 <= asked < 200 and 200 <= asked + again <= 204
