"""Rank rules on spectra whose answer is known."""

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from nspo_jax.nullspace import rank_rules

SPECTRUM = np.array([100.0, 10.0, 1.0, 0.1, 0.01, 0.0, -1e-9])


@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        ("relative_max(0.1)", 2),
        ("relative_max(5e-4)", 4),
        ("relative_max(1e-6)", 5),
        ("energy(0.01)", 2),  # 1.11 of 111.11 is just under 1 %
        ("energy(0.005)", 3),
        ("fixed(3)", 3),
        ("fixed(99)", 7),
    ],
)
def test_known_ranks(rule, rank):
    assert rank_rules.RankRule.parse(rule).rank(SPECTRUM) == rank


@hypothesis.given(
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1e3)), st.floats(1e-4, 0.9)
)
def test_energy_leaves_at_most_its_share_free_and_as_much_as_it_may(values, share):
    values = np.sort(values)[::-1]
    rank = rank_rules.RankRule("energy", share).rank(values)
    budget = share * values.sum()
    assert values[rank:].sum() <= budget * (1 + 1e-9)
    if rank:
        assert values[rank - 1 :].sum() > budget * (1 - 1e-9)


@pytest.mark.parametrize(
    "rule", ["energy", "energy()", "energy(2)", "top(3)", "fixed(0)", "fixed(1.5)",
             "relative_max(1e-7)", "relative_max(1)", ""],
)  # fmt: skip
def test_bad_rules_are_named(rule):
    with pytest.raises(ValueError, match="rank rule"):
        rank_rules.RankRule.parse(rule)


def test_a_rule_prints_as_it_reads():
    for text in ("energy(0.1)", "relative_max(0.0005)", "fixed(32)"):
        assert str(rank_rules.RankRule.parse(text)) == text
