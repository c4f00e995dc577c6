"""Leading eigenpairs against a full decomposition in float64."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from nspo_jax.nullspace import eigen, rank_rules, splits

SPECTRA = {
    "fast": lambda k: 1.0 / k**2,
    "slow": lambda k: k**-0.5,
    "massive": lambda k: np.where(k == 1, 1e4, 1.0 / k),  # the first token's direction
    "low rank": lambda k: np.where(k <= 10, 1.0, 0.0),
    "flat": lambda k: np.ones_like(k),
}


def make(name, size=240, seed=0):
    """A moment float64 [d, d], and its eigenvalues, descending."""
    values = SPECTRA[name](np.arange(1.0, size + 1))
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
    return (basis * values) @ basis.T, values


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rank", [1, 30, 60])
def test_little_more_is_left_outside_than_the_optimum(name, rank):
    moment, values = make(name)
    found = eigen.leading(moment.astype(np.float32), rank)
    assert found.passes > 0 and found.vectors.shape == (240, rank)
    vectors = found.vectors.astype(np.float64)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=2e-6)
    outside = np.trace(moment) - np.trace(vectors.T @ moment @ vectors)
    rounding = 1e-6 * values.sum()
    assert outside <= 1.03 * values[rank:].sum() + rounding
    # what it says of itself, to float32's rounding of the whole
    np.testing.assert_allclose(found.outside, outside, atol=2e-6 * values.sum())
    assert np.all(np.diff(found.values) <= 1e-5 * values[0])


def test_most_directions_are_cheaper_by_a_full_decomposition():
    moment, values = make("slow")
    found = eigen.leading(moment, 200)
    assert found.passes == 0
    np.testing.assert_allclose(found.values, values[:200], rtol=1e-9)
    assert eigen.leading(moment, 999).vectors.shape == (240, 240)


def test_the_same_seed_gives_the_same_basis():
    moment, _ = make("slow")
    first, again, other = (eigen.leading(moment, 20, seed).vectors for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize(
    ("moment", "rank", "message"),
    [
        (np.ones((3, 4)), 1, r"shape \(3, 4\) and rank 1"),
        (np.eye(3), 0, "rank 0"),
        (np.full((3, 3), np.nan), 1, "not finite"),
    ],
)
def test_a_matrix_that_is_none_is_refused(moment, rank, message):
    with pytest.raises(ValueError, match=message):
        eigen.leading(moment, rank)


HARD = {
    "flat": lambda k: np.ones_like(k),
    "near flat": lambda k: 1 - 1e-3 * k / len(k),
    "clustered": lambda k: np.where(k <= 8, 10.0, np.where(k <= 40, 1 - 1e-4 * k / len(k), 1e-3)),
    "deficient": lambda k: np.where(k <= 12, 1 / k, 0.0),
    "one massive": lambda k: np.where(k == 1, 1e4, 1 / k),
    "massive and near flat": lambda k: np.where(k == 1, 1e4, 1 - 1e-3 * k / len(k)),
    "geometric": lambda k: 0.7**k,
    "slow": lambda k: k**-0.5,
}


def check_the_bound(values, rank, seed=0):
    """The bound of what is left free, of a split of a matrix with these eigenvalues [d].

    Against LAPACK's in float64: not below it, and above it by a percent, or what float32 rounds.
    """
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    matrix = (basis * values) @ basis.T
    matrix = np.float64(np.float32(matrix + matrix.T)) / 2
    found = splits.split_matrix(matrix, rank_rules.RankRule("fixed", rank))
    inside = np.linalg.qr(np.float64(found.basis))[0]
    free = np.eye(len(values)) - inside @ inside.T
    largest = np.linalg.eigvalsh(free @ matrix @ free)[-1]
    bound, kind = found.spectrum.largest_free(rank)
    assert len(found.spectrum.values) == rank + 1 and found.side == "protected"
    assert bound >= largest
    np.testing.assert_allclose(found.spectrum.trace, values.sum(), rtol=1e-6)
    return bound, largest, kind


@pytest.mark.parametrize("rank", [3, 12])
@pytest.mark.parametrize("name", HARD)
def test_the_bound_of_what_is_free_is_above_it_and_near(monkeypatch, name, rank):
    monkeypatch.setattr(eigen, "FULL_SIZE", 8)
    values = HARD[name](np.arange(1.0, 65))
    bound, largest, kind = check_the_bound(values, rank)
    assert bound <= 1.02 * largest + 1e-6 * values[0]
    # and the vectors leave free little more than the best ones would
    assert largest <= 1.1 * values[rank] + 1e-6 * values[0]
    # of nothing but rounding either may be the smaller one, by the processor
    assert kind in (("factorization", "trace") if name == "deficient" else ("factorization",))


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.lists(st.floats(-9, 3), min_size=1, max_size=12), st.integers(0, 3), st.integers(0, 9)
)
@hypothesis.example([0.0, -7.0, -9.0, -8.0, -8.0], 0, 3)  # the values held add up to more than it
def test_no_spectrum_has_a_bound_below_what_is_free(exponents, spread, seed):
    """Steps of any height, each of several directions that differ by up to 1e-3, 1e-6, ... or 0."""
    steps = np.resize(10.0 ** np.array(exponents), 64)
    values = np.sort(steps * (1 - 1e-3**spread * np.random.default_rng(seed).random(64)))[::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eigen, "FULL_SIZE", 8)
        bound, largest, _ = check_the_bound(values, 12, seed)
    assert bound <= 1.4 * largest + 1e-6 * values[0]


def test_without_a_factor_the_bound_is_what_is_left_of_the_trace(monkeypatch):
    monkeypatch.setattr(eigen, "FULL_SIZE", 8)
    monkeypatch.setattr(eigen, "_is_below", lambda *_: False)
    values = HARD["slow"](np.arange(1.0, 65))
    bound, largest, kind = check_the_bound(values, 12)
    assert kind == "trace"
    np.testing.assert_allclose(bound, values[12:].sum(), rtol=2e-3)
    assert bound > 10 * largest


def test_an_accelerator_decomposes_less_on_its_host(monkeypatch):
    monkeypatch.setattr(eigen.jax, "default_backend", lambda: "cpu")
    assert eigen.full_size() == 4096
    monkeypatch.setattr(eigen.jax, "default_backend", lambda: "tpu")
    assert eigen.full_size() == 1024
