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
    "rule", ["energy", "energy()", "energy(1e)", "energy(2)", "top(3)", "fixed(0)", "fixed(1.5)",
             "relative_max(1e-7)", "relative_max(1)", ""],
)  # fmt: skip
def test_bad_rules_are_named(rule):
    with pytest.raises(ValueError, match="rank rule"):
        rank_rules.RankRule.parse(rule)


def test_a_rule_prints_as_it_reads():
    for text in ("energy(0.1)", "relative_max(0.0005)", "fixed(32)"):
        assert str(rank_rules.RankRule.parse(text)) == text


@pytest.mark.parametrize("value", [0.05, 0.123456789, np.float64(1 / 3)])
def test_a_rule_made_by_hand_is_the_one_that_its_text_says(value):
    rule = rank_rules.RankRule("energy", value)
    assert rank_rules.RankRule.parse(str(rule)) == rule
    assert rank_rules.as_rule(rule) is rule and rank_rules.as_rule(str(rule)) == rule
    assert rank_rules.as_rules(rule) == rank_rules.RankRules.parse(str(rule))


@pytest.mark.parametrize(
    "made",
    [("energy", 1.5), ("energy", np.nan), ("fixed", 1.5), ("fixed", np.inf), ("fixed", 0),
     ("absolute", np.inf), ("relative_max", 1e-9), ("top", 3)],
)  # fmt: skip
def test_a_rule_made_by_hand_is_checked(made):
    with pytest.raises(ValueError, match=rf"The rank rule is '{made[0]}\("):
        rank_rules.RankRule(*made)


def test_an_absolute_rule_counts_eigenvalues_from_it_on():
    rule = rank_rules.RankRule.parse("absolute(2.5)")
    assert rule.rank(np.array([9.0, 2.5, 2.4999, 0.0])) == 2
    with pytest.raises(ValueError, match="expected a positive eigenvalue"):
        rank_rules.RankRule.parse("absolute(0)")


def test_some_sites_have_rules_of_their_own():
    text = "energy(0.05)+mlp/out=fixed(64)+attention=relative_max(5e-04)+mlp=absolute(5e+4)"
    rules = rank_rules.RankRules.parse(text)
    found = {site: str(rules.of(site)) for site in ("mlp/out", "mlp/in", "attention/in", "head")}
    assert found == {
        "mlp/out": "fixed(64)", "mlp/in": "absolute(50000)",
        "attention/in": "relative_max(0.0005)", "head": "energy(0.05)",
    }  # fmt: skip
    assert rank_rules.RankRules.parse(str(rules)) == rules
    rules.check_sites(["mlp/out", "mlp/in", "attention/in"])
    with pytest.raises(ValueError, match="'attention', which finds no site: they are mlp/out"):
        rules.check_sites(["mlp/out"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy(0.05)+fixed(3)", "expected SITE=RULE"),
        ("energy(0.05)+=fixed(3)", "expected SITE=RULE"),
        ("energy(0.05)+mlp=top(3)", "The rank rule is 'top"),
        ("energy(0.05)+mlp[=fixed(3)", "no regular expression"),
    ],
)
def test_a_bad_rule_for_a_site_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        rank_rules.RankRules.parse(text)
