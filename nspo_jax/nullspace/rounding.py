"""Rounding to bfloat16 with error feedback, which moves the error into free directions.

Rounding each weight to its nearest neighbour errs by up to half a step, in all directions alike:
the protected subspace gets its share, rank / in of the error's energy. But a weight may also go to
its other neighbour, and the errors of a column's `in` weights may cancel in the `rank` protected
directions. Coordinate descent minimises

    |U^T E|^2 + FREE_COST |N^T E|^2,    E = rounded - kernel,

from the nearest neighbours on, so that it never ends above them. It is the least-squares rounding
of GPTQ (arXiv 2210.17323) for another metric. It cannot be perfect: the smaller the share of
protected directions, the more can cancel. The float32 delta (`models.export_delta`) loses nothing.

It runs on the host in float64, with rows in blocks and all outputs at once.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from nspo_jax.nullspace import projection
from nspo_jax.nullspace import projectors as projectors_lib

# The cost of an error in a free direction against a protected one. At 0 the update would be lost.
FREE_COST = 0.1
SWEEPS = 8
_BLOCK = 64  # so many rows lie between two updates of the whole sum


def feedback_rounding(
    projectors: projectors_lib.Projectors,
) -> Callable[[str, int | None, np.ndarray], np.ndarray]:
    """Makes the `edit` of `models.export_model` that rounds the projectors' kernels.

    Returns:
      A function of a parameter's path, its layer (None outside the stack) and its value. It rounds
      kernels [in, out] of a site, one layer a call, and returns everything else as it is.
    """
    dense = [site for site in projectors.sites.values() if site.side != projection.ROWS]
    owner = {path: site for site in dense for path in site.kernels}

    def edit(path: str, layer: int | None, value: np.ndarray) -> np.ndarray:
        if path not in owner:
            return value
        site = owner[path]
        index = Ellipsis if layer is None else layer
        basis = np.asarray(site.basis)[index][:, : int(np.asarray(site.ranks)[index])]
        return round_kernel(value, basis, site.side)

    return edit


def round_kernel(kernel: np.ndarray, basis: np.ndarray, side: str) -> np.ndarray:
    """Rounds a kernel to bfloat16 values with small error inside the protected subspace.

    Args:
      kernel: [in, out], any float dtype.
      basis: [in, k], orthonormal columns.
      side: "protected" if the columns span U, "null" if they span N.

    Returns:
      float32 [in, out] whose values bfloat16 holds exactly.

    Raises:
      ValueError: if kernel and basis differ in their inputs.
    """
    if kernel.ndim != 2 or kernel.shape[0] != basis.shape[0]:
        raise ValueError(
            f"The kernel has shape {kernel.shape} and the basis {basis.shape}; expected [in, out] "
            "and [in, k]. The projectors belong to another model: give those of this one's base."
        )
    # the metric is diagonal + low rank, by the stored side: U U^T = I - N N^T
    own, shared = (FREE_COST, 1.0) if side == projection.PROTECTED else (1.0, -1.0)
    shared *= 1.0 - FREE_COST
    basis, kernel = np.asarray(basis, np.float64), np.asarray(kernel, np.float64)
    rounded = _nearest(kernel)
    error = rounded - kernel
    inside = basis.T @ error  # [k, out]
    for _ in range(SWEEPS):
        before = rounded.copy()
        for start in range(0, len(kernel), _BLOCK):
            rows = slice(start, start + _BLOCK)
            gram = shared * basis[rows] @ basis[rows].T  # [block, block]
            slope = shared * basis[rows] @ inside  # the low-rank part's, updated within the block
            for i, row in enumerate(range(start, min(start + _BLOCK, len(kernel)))):
                best = rounded[row] - (slope[i] + own * error[row]) / (own + gram[i, i])
                step = _nearest(best) - rounded[row]
                rounded[row] += step
                error[row] += step
                slope += np.outer(gram[:, i], step)
            inside += basis[rows].T @ (rounded[rows] - before[rows])
        if np.array_equal(rounded, before):
            break
    return rounded.astype(np.float32)


def _nearest(values: np.ndarray) -> np.ndarray:
    """Returns the nearest bfloat16 values, as float64."""
    return values.astype(np.float32).astype(jnp.bfloat16).astype(np.float64)
