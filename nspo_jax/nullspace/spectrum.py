"""Spectra of second moments: the eigenvalues that are known, and the trace of all of them.

What a spectrum says of the most that an output can move is an upper bound, and of one of three
kinds (BOUNDS), by how the largest eigenvalue of the free directions is known:

- "eigenvalues": all of them are known, from a full decomposition in float64;
- "factorization": a matrix that was decomposed in part has a Cholesky factor that shows that no
  free eigenvalue is above a level; within a few percent of it, as a rule (see eigen.py);
- "trace": no eigenvalue is above what the protected directions leave of the trace. True, and often
  far above: what remains of projectors from before there were factorizations, and of the few
  matrices where none was found.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

# Eigenvalues of float32 inputs are known to this fraction of the largest.
NOISE = float(np.finfo(np.float32).eps)
BOUNDS = ("eigenvalues", "factorization", "trace")
# Two measurements of the same text differ by rounding alone; other text differs by more.
SAME_TEXT = 1e-3


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the second moments of one site's inputs, of one layer or of a stack.

    Attributes:
      values: float32 [*stack, known], descending. A large moment is decomposed as far as its rank
        rule needs, and a layer that knows fewer ends in NaN: those are estimates from below, and
        the last of them, the first free one, is for looking at, not for a bound. The first `first`
        are energies along the first tokens' directions, where these are kept apart.
      trace: float64 [*stack], the sum of all eigenvalues: the inputs' mean squared norm.
      first: int32 [*stack], directions of the first tokens, protected whatever the rule says.
      size: the number of input dimensions, `in`.
      bound: float64 [*stack], at least the largest eigenvalue of the directions that are left free
        by all known ones but the last; NaN where it is not known, None where it is nowhere.
    """

    values: np.ndarray
    trace: np.ndarray | np.floating
    first: np.ndarray | np.integer
    size: int
    bound: np.ndarray | np.floating | None = None

    def layers(self) -> list["Spectrum"]:
        """One spectrum a layer, [1] of what has no stack."""
        rows = self.values.reshape(-1, self.values.shape[-1])
        bounds = np.full(self.trace.shape, np.nan) if self.bound is None else self.bound
        each = (self.trace.reshape(-1), self.first.reshape(-1), bounds.reshape(-1))
        return [
            Spectrum(row[: int(np.sum(~np.isnan(row)))], trace, first, self.size, bound)
            for row, trace, first, bound in zip(rows, *each, strict=True)
        ]

    def energy(self, rank: int) -> float:
        """The share of the inputs' energy in the first `rank` directions; for one layer."""
        return float(np.sum(np.maximum(self.values[:rank], 0.0), dtype=np.float64) / self.trace)

    def gap(self, rank: int) -> float:
        """The last protected eigenvalue over the first free one.

        inf where the free one is zero, nan where there is no cut between eigenvalues. Where the
        spectrum is known in part the free one is an estimate from below: the gap is a little less.
        """
        if not self.first < rank < len(self.values):
            return float("nan")
        last, free = float(self.values[rank - 1]), float(self.values[rank])
        return last / free if free > 0 else float("inf")

    def largest_output(self, rank: int, inside: float, outside: float) -> float:
        """The most that |x dW|^2 can be a token, for one layer.

        Args:
          rank: protected directions.
          inside: |dW|^2 inside the protected subspace.
          outside: |dW|^2 in the free directions.
        """
        known, first = len(self.values), int(self.first)
        # apart from each other, the first tokens' directions and the rest are each diagonal
        largest = float(self.values[0]) + (float(self.values[first]) if 0 < first < known else 0.0)
        free = self.largest_free(rank)[0] + NOISE * largest if rank < self.size else 0.0
        if known == self.size and not first:
            return largest * inside + free * outside  # eigenvectors: nothing mixes
        return (np.sqrt(largest * inside) + np.sqrt(free * outside)) ** 2

    def largest_free(self, rank: int) -> tuple[float, str]:
        """At least the largest eigenvalue of what `rank` directions leave free; its kind of bound.

        The kind is one of BOUNDS; for one layer.
        """
        known = len(self.values)
        if known == self.size:
            return (float(self.values[rank]) if rank < known else 0.0), BOUNDS[0]
        held = float(np.sum(self.values[:rank], dtype=np.float64))
        # plus what the values lost when they were stored in float32
        left = max(float(self.trace) - held, 0.0) + NOISE / 2 * float(self.trace)
        if self.bound is None or np.isnan(self.bound) or rank > known:
            return left, BOUNDS[2]
        # of blocks on the diagonal the sum is at least the whole's largest
        between = float(self.values[rank]) if rank < known - 1 else 0.0
        found = float(self.bound) + max(between, 0.0)
        return (found, BOUNDS[1]) if found < left else (left, BOUNDS[2])

    def is_of(self, rank: int, protected: float, total: float) -> bool:
        """Whether a text's energy a token, protected and in all, is what this spectrum says."""
        differences = (
            protected - self.energy(rank) * self.trace,
            total - self.trace,
        )
        return bool(np.max(np.abs(differences)) <= SAME_TEXT * self.trace)


def single(
    values: np.ndarray, trace: float, size: int, first: int = 0, bound: float = float("nan")
) -> Spectrum:
    """The spectrum of one moment."""
    return Spectrum(
        np.asarray(values, np.float32), np.float64(trace), np.int32(first), size, np.float64(bound)
    )


def stacked(spectra: Sequence[Spectrum], stack: tuple[int, ...]) -> Spectrum:
    """One spectrum of those of single moments, [*stack], filled up with NaN."""
    known = max(len(spectrum.values) for spectrum in spectra)
    rows = [np.pad(s.values, (0, known - len(s.values)), constant_values=np.nan) for s in spectra]
    return Spectrum(
        values=np.stack(rows).reshape(*stack, known),
        trace=np.array([s.trace for s in spectra], np.float64).reshape(stack),
        first=np.array([s.first for s in spectra], np.int32).reshape(stack),
        size=spectra[0].size,
        bound=np.array([s.bound for s in spectra], np.float64).reshape(stack),
    )
