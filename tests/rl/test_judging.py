"""Judges in a run: a step ahead, failing, away for good, stopped by a signal; nothing is lost."""

import json
import os
import signal
import threading

import numpy as np
import pytest

from nspo_jax import preemption, rewards
from nspo_jax.rl import batches, trainer
from nspo_jax.tasks.chat_world import judge as world_judge
from tests import runs
from tests.rl.micro_run import assert_same_run, judge, logged, micro

pytestmark = pytest.mark.usefixtures("compile_cache", "another_judge")


def failing(monkeypatch, call, act):
    """The micro judge, but for one call, in which `act(rewards, details)` decides."""
    calls = []

    def judging(self, conversations, completions):
        if not (completions and isinstance(completions[0], str)):
            return judge(self, conversations, completions)
        found = judge(self, conversations, completions)
        if len(completions) == 24:  # of a step of training, not of an evaluation
            calls.append(threading.current_thread())
            if len(calls) == call:
                return act(*found)
        return found

    monkeypatch.setattr(world_judge.WorldJudge, "__call__", judging)
    return calls


def silent_on_the_first(rewards_, details):
    rewards_[0] = np.nan
    return rewards_, details


def away(*_):
    raise rewards.JudgeError("The judge does not answer.")


@pytest.fixture(scope="module")
def ahead(finished, tmp_path_factory):
    """A finished run with staleness 1."""
    workdir = tmp_path_factory.mktemp("ahead") / "whole"
    trainer.train(micro(finished[0], **{"rl.staleness": 1}), workdir)
    return workdir


def test_a_step_ahead_is_another_run_whose_first_batch_is_the_same(finished, ahead):
    """The second batch is sampled before the first update, and judged in a thread."""
    first, second, third, last = (row for row in logged(ahead) if "train/loss" in row)
    same = [row for row in logged(finished[1]) if "train/loss" in row]
    assert first == same[0] and third != same[2]
    # ratios of the stale batches are not 1 even at the first minibatch
    assert last["train/logprob_gap"] > 0 and second["step"] == 2
    state = json.loads(next((ahead / "checkpoints" / "2" / "data").rglob("metadata")).read_text())
    assert len(state["queue"]) == 1  # what step 3 learns from was sampled already
    final = json.loads(next((ahead / "checkpoints" / "4" / "data").rglob("metadata")).read_text())
    assert not final["queue"]  # nothing is sampled that nobody would learn from


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("call", [2, 4])
def test_a_judge_that_is_away_stops_the_run_which_then_continues_exactly(
    finished, ahead, tmp_path, monkeypatch, call, staleness
):
    config = micro(finished[0], **{"rl.staleness": staleness})
    with monkeypatch.context() as patch:
        calls = failing(patch, call, away)
        with pytest.raises(rewards.JudgeError, match="does not answer"):
            trainer.train(config, tmp_path / "run")
    assert {thread is threading.main_thread() for thread in calls} == {not staleness}
    assert (tmp_path / "run" / "checkpoints" / str(call - 1)).exists()
    trainer.train(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", ahead if staleness else finished[1])


def test_a_row_without_a_verdict_stops_the_run_or_drops_its_group(finished, tmp_path, monkeypatch):
    failing(monkeypatch, 2, silent_on_the_first)
    with pytest.raises(rewards.NoVerdictError, match="rules gave no verdict on 1 of 24"):
        trainer.train(micro(finished[0]), tmp_path / "raise")
    for policy, dropped in (("drop_group", 4 / 24), ("neutral", 0.0)):
        failing(monkeypatch, 2, silent_on_the_first)
        trainer.train(micro(finished[0], **{"rewards.on_failure": policy}), tmp_path / policy)
        rows = [row for row in logged(tmp_path / policy) if "train/loss" in row]
        assert [row["train/dropped"] for row in rows] == pytest.approx([0, dropped, 0, 0])
        assert [row["train/rules/no_verdict"] for row in rows] == pytest.approx([0, 1 / 24, 0, 0])


@pytest.mark.parametrize("staleness", [0, 1])
def test_sigterm_does_not_wait_for_a_slow_judge(finished, ahead, tmp_path, monkeypatch, staleness):
    config = micro(finished[0], **{"rl.staleness": staleness})
    closed = threading.Event()

    def slow(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        assert closed.wait(60)
        raise rewards.JudgeError("The judge was closed.")

    with monkeypatch.context() as patch:
        failing(patch, 3, slow)
        patch.setattr(world_judge.WorldJudge, "close", lambda _: closed.set(), raising=False)
        with pytest.raises(preemption.PreemptedError, match="with step 2 saved"):
            trainer.train(config, tmp_path / "run")
    trainer.train(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", ahead if staleness else finished[1])


def test_sigterm_while_it_samples_saves_too(finished, ahead, tmp_path, monkeypatch):
    """In the middle of a rollout that is a step ahead, before its judging starts."""
    config = micro(finished[0], **{"rl.staleness": 1})
    with monkeypatch.context() as patch:
        original, calls = batches.RolloutBatches._sample, []

        def sampling(self, *arguments):
            calls.append(arguments)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *arguments)

        patch.setattr(batches.RolloutBatches, "_sample", sampling)
        with pytest.raises(preemption.PreemptedError, match="with step [12] saved"):
            trainer.train(config, tmp_path / "run")
    trainer.train(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", ahead)


def test_another_batch_than_the_one_that_waits_is_refused(finished, tmp_path, monkeypatch):
    config = micro(finished[0], **{"rl.staleness": 1})
    with monkeypatch.context() as patch:
        failing(patch, 2, away)
        with pytest.raises(rewards.JudgeError):
            trainer.train(config, tmp_path / "run")
    config = runs.changed(config, {"rl.samples": 8})
    with pytest.raises(ValueError, match="6 prompts and 24 completions that wait.*asks for 6 x 8"):
        trainer.train(config, tmp_path / "run", allow_config_change=True)
