"""Leading eigenpairs against a full decomposition in float64."""

import numpy as np
import pytest

from nspo_jax.nullspace import eigen

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
