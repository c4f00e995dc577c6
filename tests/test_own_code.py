"""A user's own reward and task, named in the config: no file of the package is touched."""

import pytest

from nspo_jax import metrics, own_code
from nspo_jax.rl import checks, trainer
from tests import runs
from tests.rl.micro_run import micro

MODULE = '''
import numpy as np
from nspo_jax import tasks
from nspo_jax.data.conversation import Conversation
from nspo_jax.tasks.chat_world.task import ChatWorld


class Even:
    def __call__(self, conversations, completions):
        odd = np.array([len(text.split()) % 2 for text in completions], np.float32)
        return -odd, {"odd": odd}


class Half:
    pass


class Asks:
    def __init__(self, what):
        pass


class Breaks:
    def __init__(self):
        raise OSError("no such model")


class Twice(ChatWorld):
    """The chat world, with a score of its own."""

    def make(self, *given):
        import dataclasses
        made = super().make(*given)
        quarter = tasks.Rate("own_score", lambda rows, texts: [1, 0, 0, 0])
        own = tasks.Suite(made.suites["harmful"].rows[:4], (quarter,))
        return dataclasses.replace(made, suites=made.suites | {"own": own})
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my_nspo.py").write_text(MODULE)
    (tmp_path / "here" / "my_broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path / "here")


def test_a_run_with_a_reward_and_a_task_of_ones_own(tmp_path):
    named = {"rewards.terms": "my_nspo:Even@harmful=0.5", "task": "my_nspo:Twice", "rl.steps": 2}
    rest = {"data.wrapped_fraction": 0.0, "rl.flat_steps": 0}
    summary = trainer.train(micro(tmp_path / "work", **named, **rest), tmp_path / "run")
    assert summary["own_score"] == 0.25
    rows = metrics.read_metrics(tmp_path / "run")
    assert rows[1]["train/my_nspo:Even/weight"] == 0.5


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("no_module_here:X", "no module no_module_here: install it, or set PYTHONPATH"),
        ("my_nspo:Odd", "my_nspo has no class Odd; it has Conversation, ChatWorld, Even, Half"),
        ("my_broken:X", "cannot be imported: No module named 'no_such_library'"),
        ("my_nspo:Half", "my_nspo:Half, which lacks __call__: see docs/extending.md"),
        ("my_nspo:Asks", "cannot be made without arguments: TypeError"),
        ("my_nspo:Breaks", "cannot be made without arguments: OSError: no such model"),
    ],
)
def test_what_cannot_be_a_reward_is_told_before_anything_starts(tmp_path, named, words):
    config = micro(tmp_path, **{"rewards.terms": named})
    with pytest.raises(ValueError) as caught:
        checks.check_config(config)
    assert words in str(caught.value) and f"rewards.terms names {named}" in str(caught.value)


def test_a_class_that_is_no_task_is_told(tmp_path):
    config = runs.changed(micro(tmp_path), {"task": "my_nspo:Half"})
    with pytest.raises(ValueError, match="task names my_nspo:Half, which lacks pretrains, has_rul"):
        checks.check_config(config)


def test_only_module_and_class_is_a_name():
    assert own_code.is_named("a.b_c:D") and own_code.is_named("m:_C1")
    for text in ("rules", "a:b:c", "a.b", ":C", "a:", "a-b:C", "0:1", "a b:C"):
        assert not own_code.is_named(text)
