"""Rank rules on spectra that are known in part, first tokens' directions, and splits on disk."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax.nullspace import eigen, moments, projection, rank_rules, splits
from nspo_jax.nullspace import spectrum as spectrum_lib
from tests.nullspace.test_eigen import SPECTRA, make

RULES = ("energy(0.05)", "energy(0.3)", "relative_max(0.02)", "absolute(0.05)", "fixed(20)")


@pytest.fixture
def iterate(monkeypatch):
    """Small matrices are decomposed as large ones are."""
    monkeypatch.setattr(eigen, "FULL_SIZE", 8)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SPECTRA)
def test_a_part_of_the_spectrum_gives_the_rank_of_the_whole(iterate, name, rule):
    matrix, values = make(name)
    rule = rank_rules.RankRule.parse(rule)
    part = splits.split_matrix(matrix, rule)
    whole = rule.rank(values)
    if name == "flat" and rule.name != "energy":  # a tie, or nothing, at the cut
        return
    assert abs(part.rank - whole) <= max(1, 0.02 * whole), (part.rank, whole)
    known = len(part.spectrum.values)
    if whole < 90:  # of 240: then it was not decomposed fully
        assert known == part.rank + 1 and part.side == projection.PROTECTED
        np.testing.assert_allclose(
            part.spectrum.values[:-1], values[: part.rank], rtol=0.15, atol=2e-6 * values[0]
        )
        basis = part.basis.astype(np.float64)
        left = np.eye(240) - basis @ basis.T
        largest = np.linalg.eigvalsh(left @ matrix @ left)[-1]
        assert (
            part.spectrum.values[-1] >= 0.98 * largest - 1e-6 * values[0]
        )  # it bounds what is free
    else:
        assert known == 240
    np.testing.assert_allclose(part.spectrum.trace, values.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        part.spectrum.energy(part.rank), values[: part.rank].sum() / values.sum(), atol=0.02
    )


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
    st.lists(st.floats(0, 1e3), min_size=2, max_size=30),
    st.sampled_from(RULES),
    st.integers(1, 30),
)
def test_a_rule_never_guesses(values, rule, known):
    """Of leading eigenvalues it says the rank that all of them give, or that it cannot know."""
    values = np.sort(values)[::-1]
    rule = rank_rules.RankRule.parse(rule)
    found = rule.rank(values[:known], size=len(values), trace=values.sum())
    whole = rule.rank(values)
    if found is not None and rule.name == "energy":  # a sum from either end rounds differently
        budget = rule.value * values.sum()
        assert values[found:].sum() <= budget + 1e-9 * values.sum()
        assert found == 0 or found <= whole + 1
    else:
        assert found in (None, whole)
    assert rule.rank(values, size=len(values), trace=values.sum()) == whole
    assert found is not None or known < len(values)


def moment_with_firsts(size=40, massive=1e4, seed=0):
    """200 ordinary inputs of 12 directions, and two first tokens: one massive, both off those."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, 12)))[0]
    x = (rng.standard_normal((200, 12)) * np.linspace(3, 0.5, 12)) @ basis.T
    firsts = rng.standard_normal((2, size)) * np.array([[massive], [1.0]])
    moment = moments.Moment(
        jnp.asarray(x.T @ x, jnp.float32), jnp.zeros((size, size), jnp.float32), 210,
        firsts.astype(np.float32), np.array([7, 3]),
    )  # fmt: skip
    return moment, x, firsts


@pytest.mark.parametrize("full_size", [8, 1024])
@pytest.mark.parametrize("rule", ["relative_max(1e-3)", "energy(0.02)", "fixed(9)"])
def test_first_tokens_are_protected_and_do_not_set_the_scale(monkeypatch, full_size, rule):
    monkeypatch.setattr(eigen, "FULL_SIZE", full_size)
    moment, x, firsts = moment_with_firsts()
    rule = rank_rules.RankRule.parse(rule)
    part = splits.split(moment, rule)
    # the rank is the two directions and what the rule finds of the rest, off them
    away = np.eye(40) - np.linalg.qr(firsts.T)[0] @ np.linalg.qr(firsts.T)[0].T
    rest = np.linalg.eigvalsh(away @ (x.T @ x / 210) @ away)[::-1]
    assert part.rank == 2 + rule.rank(rest) and int(part.spectrum.first) == 2
    free = projection.project(np.eye(40, dtype=np.float32), jnp.asarray(part.basis), part.side)
    leak = np.linalg.norm(firsts @ np.asarray(free, np.float64), axis=1)
    assert np.all(leak < 3e-6 * np.linalg.norm(firsts, axis=1))
    # a mere relative_max would call all but the massive one free
    plain = np.linalg.eigvalsh(x.T @ x / 210 + firsts.T @ np.diag([7, 3]) @ firsts / 210)[::-1]
    assert rank_rules.RankRule.parse("relative_max(1e-3)").rank(plain) == 1
    total = np.sum(x**2) / 210 + (np.array([7, 3]) * np.sum(firsts**2, axis=1)).sum() / 210
    np.testing.assert_allclose(part.spectrum.trace, total, rtol=1e-6)


@pytest.mark.parametrize("full_size", [8, 1024])
def test_no_change_moves_outputs_by_more_than_such_a_spectrum_says(monkeypatch, full_size):
    monkeypatch.setattr(eigen, "FULL_SIZE", full_size)
    moment, x, firsts = moment_with_firsts(massive=30.0)
    part = splits.split(moment, rank_rules.RankRule.parse("fixed(8)"))
    inputs = np.concatenate([x, np.repeat(firsts, [7, 3], axis=0)])
    inside = np.asarray(part.basis, np.float64)
    rng = np.random.default_rng(1)
    for leak in (0.0, 1e-3, 1.0):
        change = rng.standard_normal((40, 5))
        change -= (1 - leak) * inside @ (inside.T @ change)
        held = np.sum((inside.T @ change) ** 2)
        most = part.spectrum.largest_output(part.rank, held, np.sum(change**2) - held)
        assert np.sum((inputs @ change) ** 2) / 210 <= most * (1 + 1e-4)


def test_a_stack_of_spectra_keeps_what_each_layer_knows():
    spectra = [
        spectrum_lib.single(np.array([4.0, 2.0, 1.0]), 8.0, 6),
        spectrum_lib.single(np.array([3.0, 1.0]), 5.0, 6, first=1),
    ]
    stack = spectrum_lib.stacked(spectra, (2,))
    assert stack.values.shape == (2, 3) and np.isnan(stack.values[1, 2])
    first, second = stack.layers()
    np.testing.assert_array_equal(first.values, [4, 2, 1])
    np.testing.assert_array_equal(second.values, [3, 1])
    assert (first.energy(2), second.energy(2)) == (6 / 8, 4 / 5)
    assert first.gap(2) == 2 and np.isnan(first.gap(3)) and np.isnan(second.gap(1))
    # beyond what is known, what is left of the trace, and no less for rounding
    assert 1.0 <= second.largest_output(2, 0.0, 1.0) <= 1.0 + 6 * spectrum_lib.NOISE * 5.0


def test_finished_layers_are_continued_or_thrown_away(tmp_path):
    split = splits.split_matrix(np.diag([8.0, 4, 2, 1]), rank_rules.RankRule("fixed", 1))
    store = splits.Store(tmp_path / "s", {"model": "a"})
    assert store.done() == frozenset()
    store.write(3, {"mlp/in": split, "mlp/out": split})
    (tmp_path / "s" / "4.tmp").write_bytes(b"a kill while it was written")
    again = splits.Store(tmp_path / "s", {"model": "a"})
    assert again.done() == {3}
    for name, found in again.read(3).items():
        assert name in ("mlp/in", "mlp/out") and found[1:3] == split[1:3]
        np.testing.assert_array_equal(found.basis, split.basis)
        np.testing.assert_array_equal(found.spectrum.values, split.spectrum.values)
        assert (found.spectrum.trace, found.spectrum.size) == (15.0, 4)
    (tmp_path / "s" / "3.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"3.safetensors is damaged .*delete it"):
        again.read(3)
    assert splits.Store(tmp_path / "s", {"model": "b"}).done() == frozenset()
    splits.Store(tmp_path / "s", {"model": "b"}).remove()
    assert not (tmp_path / "s").exists()
    splits.Store(None, {}).write(0, {"mlp/in": split})  # nowhere
