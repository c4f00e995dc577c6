"""Spectra of second moments: the known eigenvalues, and the trace of all of them.

A spectrum bounds the largest change of an output from above. There are three kinds of bound
(BOUNDS), by the knowledge of the largest eigenvalue of the free directions:

- "eigenvalues": all of them are known, from a full decomposition in float64;
- "factorization": a Cholesky factor shows that no free eigenvalue of a partly decomposed matrix is
  above a level, which as a rule is within a few percent of the largest (see eigen.py);
- "trace": no eigenvalue is above the part of the trace outside of the protected directions. This
  bound is often far above. It remains for projectors from before there were factorizations, and
  for the few matrices without one.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

# The eigenvalues of float32 inputs are known to this fraction of the largest.
NOISE = float(np.finfo(np.float32).eps)
_PRODUCTS = 4 * NOISE  # the rounding of a partial decomposition, relative to the trace
BOUNDS = ("eigenvalues", "factorization", "trace")
# Two measurements of the same text differ by rounding alone; other text differs by more.
SAME_TEXT = 1e-3


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of the second moments of one site's inputs, of one layer or of a stack.

    Attributes:
      values: float32 [*stack, known], descending. A large moment is decomposed as far as its rank
        rule needs, and a layer that knows fewer ends in NaN. Its values are estimates from below,
        and the last of them, the first free one, is to look at, not for a bound. The first `first`
        are energies along the first tokens' directions, if these are kept apart.
      trace: float64 [*stack], the sum of all eigenvalues, which is the inputs' mean squared norm.
      first: int32 [*stack], directions of the first tokens, which every rule protects.
      size: the number of input dimensions, `in`.
      bound: float64 [*stack], at least the largest eigenvalue of the directions that all known ones
        but the last leave free; NaN for a layer where it is not known, None if it is for none.
    """

    values: np.ndarray
    trace: np.ndarray | np.floating
    first: np.ndarray | np.integer
    size: int
    bound: np.ndarray | np.floating | None = None

    def layers(self) -> list["Spectrum"]:
        """Returns one spectrum a layer, or a list of one without a stack."""
        rows = self.values.reshape(-1, self.values.shape[-1])
        bounds = np.full(self.trace.shape, np.nan) if self.bound is None else self.bound
        each = (self.trace.reshape(-1), self.first.reshape(-1), bounds.reshape(-1))
        return [
            Spectrum(row[: int(np.sum(~np.isnan(row)))], trace, first, self.size, bound)
            for row, trace, first, bound in zip(rows, *each, strict=True)
        ]

    def energy(self, rank: int) -> float:
        """Returns the share of the inputs' energy in the first `rank` directions, for one layer."""
        return float(np.sum(np.maximum(self.values[:rank], 0.0), dtype=np.float64) / self.trace)

    def gap(self, rank: int) -> float:
        """Divides the last protected eigenvalue by the first free one.

        The gap is inf if the free one is zero, nan if there is no cut between eigenvalues. In a
        spectrum that is known in part the free one is an estimate from below, so the true gap is a
        little less.
        """
        if not self.first < rank < len(self.values):
            return float("nan")
        last, free = float(self.values[rank - 1]), float(self.values[rank])
        return last / free if free > 0 else float("inf")

    def largest_output(self, rank: int, inside: float, outside: float) -> float:
        """Computes the largest |x dW|^2 that a token can have, for one layer.

        Args:
          rank: protected directions.
          inside: |dW|^2 inside the protected subspace.
          outside: |dW|^2 in the free directions.
        """
        known, first = len(self.values), int(self.first)
        # the first tokens' directions and the rest are each diagonal, but not with each other
        largest = float(self.values[0]) + (float(self.values[first]) if 0 < first < known else 0.0)
        free = self.largest_free(rank)[0] + NOISE * largest if rank < self.size else 0.0
        if known == self.size and not first:
            return largest * inside + free * outside  # parts along eigenvectors do not mix
        return (np.sqrt(largest * inside) + np.sqrt(free * outside)) ** 2

    def largest_free(self, rank: int) -> tuple[float, str]:
        """Bounds the largest eigenvalue that `rank` directions leave free, for one layer.

        It returns the bound from above, and its kind, one of BOUNDS.
        """
        known = len(self.values)
        if known == self.size:
            return (float(self.values[rank]) if rank < known else 0.0), BOUNDS[0]
        held = float(np.sum(self.values[:rank], dtype=np.float64))
        rest = max(float(self.trace) - held, 0.0)
        # the values come of float32 products, and are stored in float32
        left = rest + (_PRODUCTS + NOISE / 2) * float(self.trace)
        if self.bound is None or np.isnan(self.bound) or rank > known:
            return left, BOUNDS[2]
        # the sum of the blocks' largest eigenvalues is at least that of the whole
        between = float(self.values[rank]) if rank < known - 1 else 0.0
        found = float(self.bound) + max(between, 0.0)
        # a bound that is what is left of the trace differs by rounding from the one here
        is_less = found + NOISE * float(self.trace) < left
        return (found, BOUNDS[1]) if is_less else (left, BOUNDS[2])

    def is_of(self, rank: int, protected: float, total: float) -> bool:
        """Tells whether a text has this spectrum's energy a token, both protected and in all."""
        differences = (
            protected - self.energy(rank) * self.trace,
            total - self.trace,
        )
        return bool(np.max(np.abs(differences)) <= SAME_TEXT * self.trace)


def single(
    values: np.ndarray, trace: float, size: int, first: int = 0, bound: float = float("nan")
) -> Spectrum:
    """Makes the spectrum of one moment."""
    return Spectrum(
        np.asarray(values, np.float32), np.float64(trace), np.int32(first), size, np.float64(bound)
    )


def stacked(spectra: Sequence[Spectrum], stack: tuple[int, ...]) -> Spectrum:
    """Stacks the spectra of single moments, [*stack], filled up with NaN."""
    known = max(len(spectrum.values) for spectrum in spectra)
    rows = [np.pad(s.values, (0, known - len(s.values)), constant_values=np.nan) for s in spectra]
    return Spectrum(
        values=np.stack(rows).reshape(*stack, known),
        trace=np.array([s.trace for s in spectra], np.float64).reshape(stack),
        first=np.array([s.first for s in spectra], np.int32).reshape(stack),
        size=spectra[0].size,
        bound=np.array([s.bound for s in spectra], np.float64).reshape(stack),
    )
