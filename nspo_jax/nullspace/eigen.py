"""The leading eigenvectors of a second moment, without decomposing all of it.

Blocked subspace iteration (Halko, Martinsson and Tropp, SIAM Review 53, 2011, algorithm 4.4)
multiplies a random block by the matrix and orthonormalises it, again and again, until the energy
outside of it stops falling. A Rayleigh-Ritz step in the block follows. For rank d/8 that is a few
matrix products of [d, d] with [d, d/8], on the device; a full decomposition would take minutes at
d = 18944. If the rank follows from the eigenvalues, `decompose` takes more of them until it is
known.

Ritz values estimate eigenvalues from below, as a power iteration does the largest eigenvalue that
the vectors leave free. A bound must be from above, so `_bound_outside` tries levels a little above
that estimate until level - C, with the vectors deflated, has a Cholesky factor. By Sylvester's law
of inertia no eigenvalue is then above the level.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST
# Above this share of all directions a full decomposition is the cheaper one. Up to these sizes it
# is cheap enough, and shows the whole spectrum; an accelerator's products are faster than its host.
FULL_SHARE = 0.5
FULL_SIZE = 4096
FULL_SIZE_BESIDE_ACCELERATOR = 1024
_OVERSAMPLING = 1.15  # the block has so many times the rank's columns
_MARGIN = 8  # the block has so many more columns
_TOLERANCE = 1e-2  # the iteration ends at this relative fall of the energy outside
_MOST_PASSES = 12
# The levels that are tried for the bound, as multiples of the estimate from below.
_SLACKS = (1.01, 1.03, 1.1, 1.3, 2.0, 4.0, 16.0, 256.0)
# The rounding of float32 products, relative to the largest eigenvalue, and of a factorisation,
# relative to the level.
_PRODUCT_ROUNDING = 4 * float(np.finfo(np.float32).eps)
_FACTOR_ROUNDING = 1e-5


# (leading eigenvalues, descending; the number of all; their sum) -> ranks, or None to get more.
RanksOf = Callable[[np.ndarray, int, float], list[int] | None]


class Eigenpairs(NamedTuple):
    """Leading eigenpairs of a symmetric matrix.

    values: float64 [rank], descending; vectors: float32 [d, rank], orthonormal columns;
    trace: the whole matrix's; passes: multiplications by it, 0 for a full decomposition;
    bound: for a partial decomposition, at least the largest eigenvalue that the vectors of the rank
    leave free; NaN if none was asked for, or all eigenvalues are there.
    """

    values: np.ndarray
    vectors: np.ndarray
    trace: float
    passes: int
    bound: float = float("nan")

    @property
    def outside(self) -> float:
        """The energy outside of the vectors, the rest of the trace."""
        return self.trace - float(np.sum(self.values))


def decompose(
    matrix: jax.Array | np.ndarray, ranks_of: RanksOf, guess: int = 0
) -> tuple[Eigenpairs, list[int]]:
    """Computes as many leading eigenpairs of a positive semi-definite matrix as its ranks need.

    It decomposes fully (LAPACK, float64, on the host) up to `full_size`, or if more than half of
    the directions are asked for, and iterates on the device otherwise.

    Args:
      matrix: float32 or float64 [d, d], symmetric.
      ranks_of: makes the ranks by several rules of (eigenvalues found so far, size, trace), or None
        if one of them depends on eigenvalues that are not found.
      guess: the expected rank; 0: no idea.

    Returns:
      The pairs, more than the largest rank unless they are all, and the ranks. If they are not all,
      the value after the largest rank is the largest eigenvalue that the first vectors leave free,
      from below (a few power iterations), `bound` is the same from above, and the vectors after the
      rank mean nothing.

    Raises:
      ValueError: for the reasons of `leading`.
    """
    size = matrix.shape[-1]
    count = size if size <= full_size() else max(guess + guess // 16, size // 32) + _MARGIN
    start = None
    while True:
        if _block(count, size) > FULL_SHARE * size:
            count = size
        pairs = leading(matrix, count, start=start)
        ranks = ranks_of(pairs.values, size, pairs.trace)
        if ranks is None:  # this cannot happen once all eigenvalues are known
            start, count = pairs.vectors, 2 * count
            continue
        if len(pairs.values) == size:
            return pairs, ranks
        rank = max(ranks)
        values = pairs.values[: rank + 1].copy()
        values[rank], bound = _bound_outside(jnp.asarray(matrix, jnp.float32), pairs, rank)
        vectors = pairs.vectors[:, : rank + 1]
        return pairs._replace(values=values, vectors=vectors, bound=bound), ranks


def full_size() -> int:
    """Returns the largest number of inputs of a matrix that is decomposed fully."""
    if jax.default_backend() == "cpu":
        return FULL_SIZE
    return min(FULL_SIZE, FULL_SIZE_BESIDE_ACCELERATOR)


def leading(
    moment: jax.Array | np.ndarray, rank: int, seed: int = 0, start: np.ndarray | None = None
) -> Eigenpairs:
    """Computes the `rank` leading eigenpairs of a positive semi-definite matrix.

    It iterates on the device, or decomposes fully (LAPACK, float64, on the host) if the rank is
    more than half of the size.

    Args:
      moment: float32 or float64 [d, d], symmetric.
      rank: at least 1; more than d is taken as d.
      seed: the seed of the random block.
      start: float32 [d, any], columns that are near to the eigenvectors.

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
        # the image is a better block than the measured one, and needs one orthonormalisation
        basis = _orthonormal(image)
        if passes > 1 and before - outside <= _TOLERANCE * max(outside, 1e-7 * trace):
            break
    values, vectors = _rayleigh_ritz(matrix, basis)
    values = np.asarray(values, np.float64)[::-1][:rank]
    vectors = np.asarray(_polish(vectors[:, ::-1][:, :rank]))
    return Eigenpairs(values, vectors, trace, passes)


def _block(rank: int, size: int) -> int:
    """Returns the number of columns to iterate on for a rank."""
    return min(size, int(np.ceil(rank * _OVERSAMPLING)) + _MARGIN)


@jax.jit
def _trace(matrix):
    return jnp.trace(matrix)


@jax.jit
def _multiply(matrix, basis):
    """Computes matrix @ basis, and the basis' energy tr(basis^T matrix basis)."""
    image = jnp.matmul(matrix, basis, precision=HIGHEST)
    return image, jnp.sum(basis * image)


@jax.jit
def _orthonormal(columns):
    return jnp.linalg.qr(columns)[0]


@jax.jit
def _rayleigh_ritz(matrix, basis):
    """Computes the ascending eigenpairs of the matrix restricted to the basis."""
    small = jnp.matmul(basis.T, jnp.matmul(matrix, basis, precision=HIGHEST), precision=HIGHEST)
    values, rotation = jnp.linalg.eigh((small + small.T) / 2)
    return values, jnp.matmul(basis, rotation, precision=HIGHEST)


@functools.partial(jax.jit, donate_argnums=0)
def _polish(vectors):
    """Takes a Newton-Schulz step, which makes columns orthonormal to rounding instead of 1e-6."""
    gram = jnp.matmul(vectors.T, vectors, precision=HIGHEST)
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jnp.matmul(vectors, 1.5 * eye - 0.5 * gram, precision=HIGHEST)


def _bound_outside(matrix: jax.Array, pairs: Eigenpairs, rank: int) -> tuple[float, float]:
    """Returns bounds, from below and above, of the largest eigenvalue off the first `rank` vectors.

    The bound from above is never more than the rest of the trace.
    """
    inside, largest = pairs.vectors[:, :rank], float(pairs.values[0])
    least = max(float(_largest_outside(matrix, inside, pairs.vectors[:, rank:])), 0.0)
    rounding = _PRODUCT_ROUNDING * largest
    left = pairs.trace - float(np.sum(pairs.values[:rank]))
    most = max(left, 0.0) + _PRODUCT_ROUNDING * pairs.trace
    rest = _deflated(matrix, inside)
    for slack in _SLACKS:
        level = slack * least + rounding / 4
        bound = level * (1 + _FACTOR_ROUNDING) + rounding
        if bound >= most:
            break
        if _is_below(rest, level):
            return least, bound
    return least, most


@jax.jit
def _largest_outside(matrix, inside, start):
    """Estimates the largest eigenvalue of the matrix off the span of `inside`, from below.

    It takes a few steps of block power iteration from the next columns and random ones.
    """
    drawn = jax.random.normal(jax.random.key(1), (matrix.shape[0], _MARGIN), jnp.float32)
    block = jnp.concatenate([start[:, : 2 * _MARGIN], drawn], axis=1)

    def deflated(block):
        held = jnp.matmul(inside.T, block, precision=HIGHEST)
        return block - jnp.matmul(inside, held, precision=HIGHEST)

    def orthonormal(block):
        # a second time, since QR makes columns of its own, which may be inside, of a block that
        # deflation leaves (nearly) without a column
        return jnp.linalg.qr(deflated(jnp.linalg.qr(deflated(block))[0]))[0]

    def step(_, block):
        return jnp.matmul(matrix, orthonormal(block), precision=HIGHEST)

    block = orthonormal(jax.lax.fori_loop(0, 8, step, block))
    small = jnp.matmul(block.T, jnp.matmul(matrix, block, precision=HIGHEST), precision=HIGHEST)
    return jnp.linalg.eigvalsh((small + small.T) / 2)[-1]


@jax.jit
def _deflated(matrix, inside):
    """Restricts the matrix to the complement of `inside`, [d, d]."""

    def off(matrix):
        held = jnp.matmul(inside.T, matrix, precision=HIGHEST)
        return matrix - jnp.matmul(inside, held, precision=HIGHEST)

    rest = off(off(matrix).T)
    return (rest + rest.T) / 2


@jax.jit
def _is_below(matrix, level):
    """Tells whether every eigenvalue is below a level: level - matrix has a Cholesky factor."""
    shifted = level * jnp.eye(matrix.shape[0], dtype=matrix.dtype) - matrix
    return jnp.all(jnp.isfinite(jax.lax.linalg.cholesky(shifted, symmetrize_input=False)))
