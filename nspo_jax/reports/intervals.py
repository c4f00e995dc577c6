"""Confidence intervals of a share of a sample and of the median over seeds."""

from collections.abc import Sequence
import math
import statistics

import numpy as np

CONFIDENCE = 0.95


def median_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Computes the interval of a median between two order statistics, for any distribution.

    With n values the k-th smallest and the k-th largest enclose the median with probability
    1 - 2 P(Binomial(n, 1/2) < k). The result is the narrowest interval that reaches `CONFIDENCE`.
    Fewer than six values cannot reach it, and give their smallest and their largest.

    Returns:
      Low, high, and the probability with which they enclose the median.

    Raises:
      ValueError: for fewer than two values.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    if count < 2:
        raise ValueError(f"{count} values have no interval of the median; expected two or more.")
    rank = 1
    while 2 * _at_most(rank, count) <= 1 - CONFIDENCE:
        rank += 1
    coverage = 1 - 2 * _at_most(rank - 1, count)
    return float(ordered[rank - 1]), float(ordered[count - rank]), float(coverage)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Computes Wilson's interval of a share of `count` independent cases, with `CONFIDENCE`.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927). The interval stays inside [0, 1] and has a width at a share of 0 or 1 too.

    Raises:
      ValueError: for a share outside [0, 1] or no case.
    """
    if not 0 <= share <= 1 or count < 1:
        raise ValueError(f"The share is {share} of {count} cases; expected 0 to 1 of at least one.")
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) * z / (1 + z**2 / count)
    return float(max(0.0, centre - spread)), float(min(1.0, centre + spread))


def _at_most(heads: int, throws: int) -> float:
    """P(Binomial(throws, 1/2) <= heads)."""
    return sum(math.comb(throws, k) for k in range(heads + 1)) / 2**throws
