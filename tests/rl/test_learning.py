"""The watch over whether a run learns."""

import logging

import pytest

from nspo_jax import metrics
from nspo_jax.rl import learning, trainer
from tests.rl import micro_run

FLAT = {"update_norm": 0.0, "flat_groups": 1.0, "dropped": 0.0}
TAUGHT = {"update_norm": 0.1, "flat_groups": 0.9, "dropped": 0.0}


def example():
    return "An answer."


def test_a_run_that_never_learned_ends_after_so_many_steps():
    watch = learning.LearningWatch(3, "raise", [])
    for _ in range(2):
        watch.observe(FLAT, example)
    with pytest.raises(learning.NothingToLearnError, match="3 steps in a row taught nothing") as e:
        watch.observe(FLAT | {"dropped": 0.25}, example)
    message = str(e.value)
    assert "25% of the completions had no verdict, 100% of the groups were flat" in message
    assert "An answer." in message and "rewards.terms" in message


def test_a_run_that_is_done_is_warned_of_once(caplog):
    watch = learning.LearningWatch(2, "raise", [])
    watch.observe(TAUGHT, example)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            watch.observe(FLAT, example)
    assert len(caplog.records) == 1 and "done, or stuck" in caplog.text


@pytest.mark.parametrize(("patience", "policy", "warned"), [(2, "warn", 1), (0, "raise", 0)])
def test_a_policy_that_goes_on(caplog, patience, policy, warned):
    watch = learning.LearningWatch(patience, policy, [])
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            watch.observe({"update_norm": 0.0}, example)
    assert len(caplog.records) == warned


def test_a_resumed_run_remembers():
    row = {f"train/{name}": value for name, value in FLAT.items()}
    watch = learning.LearningWatch(3, "raise", [{"step": 0, "evaluation/unsafe": 1.0}, row, row])
    with pytest.raises(learning.NothingToLearnError):
        watch.observe(FLAT, example)
    row |= {"train/update_norm": 0.1, "train/flat_groups": 0.5}
    watch = learning.LearningWatch(1, "raise", [row])
    watch.observe(FLAT, example)


def test_a_run_with_a_judge_that_likes_all_alike_says_so_and_is_saved(finished, tmp_path):
    """The world's judge finds every answer of a micro model bad."""
    config = micro_run.micro(finished[0], **{"rl.flat_steps": 2, "rl.minibatches": 1})
    with pytest.raises(learning.NothingToLearnError, match="An answer to '.*': '.*', reward -1"):
        trainer.train(config, tmp_path / "run")
    assert [r["train/flat_groups"] for r in metrics.read_metrics(tmp_path / "run")[1:]] == [1, 1]
    assert (tmp_path / "run" / "checkpoints" / "2").exists()
    with pytest.raises(learning.NothingToLearnError, match="3 steps in a row"):
        trainer.train(config, tmp_path / "run")  # resumed, it remembers


def test_a_run_shorter_than_the_patience_is_told_at_its_end(finished, tmp_path, caplog):
    config = micro_run.micro(finished[0], **{"rl.steps": 1, "rl.minibatches": 1})
    trainer.train(config, tmp_path / "run")
    [record] = [record for record in caplog.records if record.name == learning.__name__]
    assert "1 step in a row taught nothing" in record.getMessage()


def test_a_short_run_without_a_verdict_ends_with_an_error():
    watch = learning.LearningWatch(10, "raise", [])
    watch.observe(FLAT | {"dropped": 1.0}, example)
    with pytest.raises(learning.NothingToLearnError, match="2 steps in a row taught nothing"):
        watch.observe(FLAT | {"dropped": 1.0}, example, last=True)
    watch = learning.LearningWatch(10, "raise", [])
    watch.observe(TAUGHT, example)
    watch.observe(FLAT | {"dropped": 1.0}, example, last=True)  # it did learn


def test_a_resumed_short_run_remembers_that_it_had_verdicts(caplog):
    row = {f"train/{name}": value for name, value in FLAT.items()}
    watch = learning.LearningWatch(10, "raise", [row])
    watch.observe(FLAT | {"dropped": 1.0}, example, last=True)
    assert "2 steps in a row taught nothing" in caplog.text
