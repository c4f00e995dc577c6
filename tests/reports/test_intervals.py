"""Intervals against scipy's own, published values and simulation."""

import numpy as np
import pytest
from scipy import stats

from nspo_jax.reports import intervals


@pytest.mark.parametrize(
    ("count", "rank", "coverage"),  # from tables of the sign test
    [(2, 1, 0.5), (3, 1, 0.75), (5, 1, 0.9375), (6, 1, 0.96875), (10, 2, 0.978516)],
)
def test_the_median_s_interval_is_the_sign_test_s(count, rank, coverage):
    values = np.random.default_rng(0).permutation(count)
    low, high, found = intervals.median_interval(values)
    assert (low, high) == (rank - 1, count - rank)
    assert found == pytest.approx(coverage, abs=1e-6)


def test_the_median_s_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(1).exponential(size=(4000, 10))
    found = [intervals.median_interval(row) for row in draws]
    share = np.mean([low <= np.log(2) <= high for low, high, _ in found])
    assert share == pytest.approx(found[0][2], abs=4 * np.sqrt(0.02 * 0.98 / 4000))


@pytest.mark.parametrize(("hits", "count"), [(0, 200), (1, 200), (100, 200), (200, 200), (3, 7)])
def test_a_share_s_interval_is_wilson_s(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert intervals.share_interval(hits / count, count) == pytest.approx(tuple(expected))


def test_what_has_no_interval_is_an_error():
    with pytest.raises(ValueError, match="1 values"):
        intervals.median_interval([0.5])
    with pytest.raises(ValueError, match="expected 0 to 1"):
        intervals.share_interval(1.5, 10)
