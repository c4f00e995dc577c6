"""The leading eigenvectors of a second moment, without decomposing all of it.

Blocked subspace iteration (Halko, Martinsson and Tropp, SIAM Review 53, 2011, algorithm 4.4): a
random block is multiplied by the matrix and orthonormalised, again and again, until the energy that
it leaves outside stops falling; then a Rayleigh-Ritz step in the block. For rank d/8 that is a few
matrix products of [d, d] with [d, d/8], on the device, where a full decomposition would take
minutes at d = 18944. Where the rank follows from the eigenvalues, `decompose` takes more of them
until it is known.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST
# Above this share of all directions a full decomposition is the cheaper one; up to this size it is
# a matter of a second, and shows the whole spectrum.
FULL_SHARE = 0.5
FULL_SIZE = 1024
_OVERSAMPLING = 1.15  # columns of the block beyond the rank that is asked for
_MARGIN = 8  # and this many more
_TOLERANCE = 1e-2  # relative fall of the energy outside at which the iteration ends
_MOST_PASSES = 12


# (leading eigenvalues, descending; the number of all; their sum) -> rank, None: more are needed.
RankOf = Callable[[np.ndarray, int, float], int | None]


class Eigenpairs(NamedTuple):
    """Leading eigenpairs of a symmetric matrix.

    values: float64 [rank], descending; vectors: float32 [d, rank], orthonormal columns;
    trace: of the whole matrix; passes: multiplications by it, 0 for a full decomposition.
    """

    values: np.ndarray
    vectors: np.ndarray
    trace: float
    passes: int

    @property
    def outside(self) -> float:
        """The energy that the vectors leave outside: the trace's part that they do not hold."""
        return self.trace - float(np.sum(self.values))


def decompose(
    matrix: jax.Array | np.ndarray, rank_of: RankOf, guess: int = 0
) -> tuple[Eigenpairs, int]:
    """As many leading eigenpairs of a positive semi-definite matrix as its rank needs.

    Decomposes fully (LAPACK, float64, on the host) up to `FULL_SIZE` and where more than half of
    the directions are asked for; else iterates on the device.

    Args:
      matrix: float32 or float64 [d, d], symmetric.
      rank_of: says the rank that the eigenvalues found so far mean.
      guess: the rank to be expected; 0: no idea.

    Returns:
      The pairs, more than the rank unless they are all; and the rank. Of pairs that are not all,
      the value after the rank is the largest eigenvalue of what the first `rank` vectors leave free
      (to the accuracy of a few power iterations), and the vectors after it mean nothing.

    Raises:
      ValueError: as `leading`.
    """
    size = matrix.shape[-1]
    count = size if size <= FULL_SIZE else max(guess + guess // 16, size // 32) + _MARGIN
    start = None
    while True:
        if _block(count, size) > FULL_SHARE * size:
            count = size
        pairs = leading(matrix, count, start=start)
        rank = rank_of(pairs.values, size, pairs.trace)
        if len(pairs.values) == size:
            return pairs, rank
        if rank is not None:
            values = pairs.values[: rank + 1].copy()
            free = _largest_outside(
                jnp.asarray(matrix, jnp.float32), pairs.vectors[:, :rank], pairs.vectors[:, rank:]
            )
            values[rank] = max(values[rank], float(free))
            return pairs._replace(values=values, vectors=pairs.vectors[:, : rank + 1]), rank
        start, count = pairs.vectors, 2 * count


def leading(
    moment: jax.Array | np.ndarray, rank: int, seed: int = 0, start: np.ndarray | None = None
) -> Eigenpairs:
    """The `rank` leading eigenpairs of a positive semi-definite matrix.

    Iterates on the device, or decomposes fully (LAPACK, float64, on the host) where the rank is
    more than half of the size.

    Args:
      moment: float32 or float64 [d, d], symmetric.
      rank: at least 1; more than d is taken as d.
      seed: of the random block.
      start: float32 [d, any], columns that are near to what is sought.

    Raises:
      ValueError: the matrix is not square, or has a number that is not finite.
    """
    size = moment.shape[-1]
    if moment.ndim != 2 or moment.shape[0] != size or rank < 1:
        raise ValueError(
            f"A moment of shape {moment.shape} and rank {rank}: expected [d, d] and at least 1."
        )
    on_host = isinstance(moment, np.ndarray)
    trace = float(np.trace(moment, dtype=np.float64) if on_host else _trace(moment))
    if not np.isfinite(trace):
        raise ValueError("The moment is not finite: check the model and the calibration text.")
    block = _block(rank, size)
    if block > FULL_SHARE * size:
        values, vectors = np.linalg.eigh(np.asarray(moment, np.float64))
        values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
        return Eigenpairs(values, vectors.astype(np.float32), trace, 0)
    matrix = jnp.asarray(moment, jnp.float32)
    columns = jax.random.normal(jax.random.key(seed), (size, block), jnp.float32)
    if start is not None:
        columns = columns.at[:, : start.shape[1]].set(start)
    basis = _orthonormal(columns)
    outside, passes = np.inf, 0
    while passes < _MOST_PASSES:
        image, held = _multiply(matrix, basis)
        passes += 1
        before, outside = outside, trace - float(held)
        # the block itself is better than what its last image shows: one more orthonormalisation
        basis = _orthonormal(image)
        if passes > 1 and before - outside <= _TOLERANCE * max(outside, 1e-7 * trace):
            break
    values, vectors = _rayleigh_ritz(matrix, basis)
    values = np.asarray(values, np.float64)[::-1][:rank]
    vectors = np.asarray(_polish(vectors[:, ::-1][:, :rank]))
    return Eigenpairs(values, vectors, trace, passes)


def _block(rank: int, size: int) -> int:
    """Columns to iterate on for a rank."""
    return min(size, int(np.ceil(rank * _OVERSAMPLING)) + _MARGIN)


@jax.jit
def _trace(matrix):
    return jnp.trace(matrix)


@jax.jit
def _multiply(matrix, basis):
    """matrix @ basis, and the energy that the basis holds: tr(basis^T matrix basis)."""
    image = jnp.matmul(matrix, basis, precision=HIGHEST)
    return image, jnp.sum(basis * image)


@jax.jit
def _orthonormal(columns):
    return jnp.linalg.qr(columns)[0]


@jax.jit
def _rayleigh_ritz(matrix, basis):
    """Eigenpairs of the matrix restricted to the basis, ascending."""
    small = jnp.matmul(basis.T, jnp.matmul(matrix, basis, precision=HIGHEST), precision=HIGHEST)
    values, rotation = jnp.linalg.eigh((small + small.T) / 2)
    return values, jnp.matmul(basis, rotation, precision=HIGHEST)


@functools.partial(jax.jit, donate_argnums=0)
def _polish(vectors):
    """A Newton-Schulz step: the columns are orthonormal to 1e-6 already, and to rounding after."""
    gram = jnp.matmul(vectors.T, vectors, precision=HIGHEST)
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jnp.matmul(vectors, 1.5 * eye - 0.5 * gram, precision=HIGHEST)


@jax.jit
def _largest_outside(matrix, inside, start):
    """The largest eigenvalue of the matrix restricted to the complement of `inside`.

    A few steps of block power iteration from the columns that came next, and random ones.
    """
    drawn = jax.random.normal(jax.random.key(1), (matrix.shape[0], _MARGIN), jnp.float32)
    block = jnp.concatenate([start[:, : 2 * _MARGIN], drawn], axis=1)

    def deflated(block):
        held = jnp.matmul(inside.T, block, precision=HIGHEST)
        return block - jnp.matmul(inside, held, precision=HIGHEST)

    def step(_, block):
        block = jnp.linalg.qr(deflated(block))[0]
        return jnp.matmul(matrix, block, precision=HIGHEST)

    block = jnp.linalg.qr(deflated(jax.lax.fori_loop(0, 8, step, block)))[0]
    small = jnp.matmul(block.T, jnp.matmul(matrix, block, precision=HIGHEST), precision=HIGHEST)
    return jnp.linalg.eigvalsh((small + small.T) / 2)[-1]
