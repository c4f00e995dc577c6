"""One of each kind, added from outside by a row of its table: no file of the package changes.

The counterpart of docs/extending.md: a rank rule, a reward term, a task with a suite of its own,
and an algorithm, in one run from the config's text to the printed table.
"""

import dataclasses
import functools

import numpy as np
import pytest

from nspo_jax import settings, tasks
from nspo_jax.nullspace import rank_rules
from nspo_jax.reports import tables
from nspo_jax.rl import algorithms, checks, terms, trainer
from nspo_jax.rl.algorithms.policy_gradient import PolicyGradient
from nspo_jax.tasks.chat_world.task import ChatWorld
from tests.rl.micro_run import judge, micro


class Riddles(ChatWorld):
    """The chat world with a suite more: how many answers are short."""

    fields = (*ChatWorld.fields, "data.train_column")

    def make(self, *given):
        made = super().make(*given)
        short = tasks.Rate("short", lambda rows, texts: [len(t) < 9 for t in texts], "brief", False)
        rows = made.suites["harmful"].rows
        return dataclasses.replace(
            made, suites=made.suites | {"riddles": tasks.Suite(rows, (short,))}
        )


class Twice(PolicyGradient):
    """The policy gradient on rewards of twice the size."""

    def make_step(self, model_config, optimizer):
        step = super().make_step(model_config, optimizer)

        @functools.wraps(step)
        def twice(state, frozen, reference, batch):
            return step(state, frozen, reference, batch._replace(advantages=2 * batch.advantages))

        return twice


class Odd:
    def __call__(self, conversations, completions):
        return judge(self, conversations, completions)


@pytest.fixture
def added(monkeypatch):
    share = rank_rules.Rule(
        "SHARE",
        lambda share: 0 < share < 1,
        "a share of directions in (0, 1)",
        lambda share, known: int(np.ceil(share * known.size)),
    )
    monkeypatch.setitem(rank_rules.RULES, "share", share)
    monkeypatch.setitem(terms.TERMS, "odd", terms.Term(lambda run, base: Odd()))
    monkeypatch.setitem(tasks.KINDS, "riddles", Riddles())
    monkeypatch.setitem(algorithms.ALGORITHMS, "twice", Twice)


NAMED = {
    "calibration.rank_rule": "share(0.25)", "rewards.terms": "odd@harmful=0.5", "task": "riddles",
    "rl.steps": 2,
}  # fmt: skip


def test_a_row_of_a_table_is_all_that_a_part_needs(added, tmp_path):
    summary = trainer.train(micro(tmp_path / "work", **NAMED), tmp_path / "run")
    (directory,) = (tmp_path / "work" / "seed_0" / "projectors").iterdir()
    assert directory.name.startswith("share(0.25)")
    assert 0 <= summary["short"] <= 1 and summary["counts"]["short"] == 5
    header = tables.format_scores({"nspo": summary}).split("\n")[0]
    assert header.split()[:8] == [
        "arm", "unsafe", "nouns", "templates", "both", "over-refusal", "brief", "general",
    ]  # fmt: skip


def test_an_algorithm_is_chosen_and_planned_by_its_row(added, tmp_path):
    run = micro(tmp_path / "work", **NAMED, **{"rl.algorithm": "twice"})
    assert isinstance(algorithms.of(run), Twice)
    assert trainer.train(run, tmp_path / "run")["step"] == 2


def test_what_the_rows_read_others_refuse(added, tmp_path):
    run = settings.replace(micro(tmp_path, **NAMED), {"data.train_column": "prompt"})
    checks.check_config(run)
    with pytest.raises(ValueError, match="only task=safety or task=riddles reads it"):
        checks.check_config(settings.replace(run, {"task": "chat_world"}))


def test_a_term_that_is_no_row_is_named_with_those_there_are(tmp_path):
    with pytest.raises(
        ValueError, match="has 'rulez'; expected NAME.* of rules, refusal, over_refusal, "
    ):
        terms.parse("rules+rulez@harmful")
