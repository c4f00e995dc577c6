"""Any optax optimizer in null-space coordinates. Like projection.py: jax, numpy and optax alone.

Adam is not invariant to rotations, so its result depends on the basis of the null space that its
coordinates refer to. `nearest_basis` makes that basis, a function of the null space alone,
whichever side of a site is stored, and however its columns are turned.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from nspo_jax.nullspace import projection

_GOLDEN_SECTION = 0.6180339887498949  # its multiples, modulo 1, are all different
_WEIGHTS_SPREAD = 0.1  # the weights of rows are within 10 % of each other


class NullCoordinatesState(NamedTuple):
    """State of `in_null_space`.

    bases: site name -> float32 [*stack, in, free], the null basis N that `nearest_basis` makes, or
      the mask of a "rows" site. A checkpoint holds it, so a run goes on in its first basis.
    inner: the wrapped optimizer's state; at projected kernels its arrays are [*stack, free, out].
    """

    bases: dict[str, jax.Array]
    inner: optax.OptState


def in_null_space(
    optimizer: optax.GradientTransformation, projectors: Any
) -> optax.GradientTransformationExtraArgs:
    """Runs `optimizer` in null-space coordinates: it sees `N^T g` and its update is mapped by `N`.

    The update satisfies the same constraint as `null_space_projection`, but Adam's moments live in
    the null space, where its per-coordinate scaling cannot push the update out and be cut off.
    Weight decay acts on the weights' null-space part alone. `optimizer` gets kernels without a
    projector as they are, and the rows of a "rows" site with zeros for seen tokens. The coordinates
    are those of `nearest_basis`, as near to the kernel's own rows as can be.

    Memory, for a site with `in` inputs, kernels of `out` outputs together and a free share f, in
    float32 numbers: Adam's moments shrink from 2 in out to 2 f in out, and the state holds N,
    f in^2, where `null_space_projection` holds the thinner side, min(f, 1 - f) in^2. With out = in
    that is 86 % less at f = 0.1 and 40 % less at f = 0.5; beyond f = 0.75 N costs more than the
    moments save (29 % more at f = 0.9).

    Args:
      optimizer: any optax transformation, e.g. `optax.adamw(1e-6)`.
      projectors: `Projectors`, or a mapping from site name to `Site`.

    Raises:
      ValueError: at `init`, for the reasons of `null_space_projection`.

    Examples:
      Two of three inputs are protected, and Adam's moments have one row:

      >>> import jax.numpy as jnp, numpy as np, optax
      >>> import nspo_jax
      >>> seen = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # [tokens, in]
      >>> site = nspo_jax.site_from_moment(("w",), seen.T @ seen, "fixed(2)")
      >>> optimizer = nspo_jax.in_null_space(optax.adam(0.1), {"input": site})
      >>> state = optimizer.init({"w": jnp.ones((3, 2))})
      >>> state.inner[0].mu["w"].shape
      (1, 2)
      >>> updates, state = optimizer.update({"w": jnp.ones((3, 2))}, state)
      >>> float(jnp.abs(seen @ updates["w"]).max()) < 1e-6, bool(jnp.all(updates["w"][2] < -0.09))
      (True, True)
    """
    sites = projection.sites_of(projectors)
    nearest = functools.cache(lambda: {name: nearest_basis(site) for name, site in sites.items()})
    optimizer = optax.with_extra_args_support(optimizer)

    def reduce(tree, bases):
        def visit(leaf, name, _):
            if sites[name].side == projection.ROWS:
                return projection.project(leaf, bases[name], projection.ROWS)
            return projection.coordinates(leaf, bases[name])

        return projection.map_kernels(visit, sites, tree)

    def expand(tree, bases, like):
        def visit(leaf, name, path):
            if sites[name].side == projection.ROWS:
                return projection.project(leaf, bases[name], projection.ROWS)
            return projection.from_coordinates(leaf, bases[name], like[path])

        return projection.map_kernels(visit, sites, tree)

    def init(params: optax.Params) -> NullCoordinatesState:
        projection.match_kernels(sites, params)
        bases = projection.copy_bases(nearest())
        return NullCoordinatesState(bases, optimizer.init(reduce(params, bases)))

    def update(updates, state: Any, params=None, **extra_args):
        bases = state.bases
        reduced = None if params is None else reduce(params, bases)
        steps, inner = optimizer.update(reduce(updates, bases), state.inner, reduced, **extra_args)
        steps = expand(steps, bases, projection.leaves_by_path(updates))
        return steps, NullCoordinatesState(bases, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def nearest_basis(site: projection.Site) -> np.ndarray | jax.Array:
    """Makes the orthonormal basis of a site's null space that is nearest to input axes.

    As many of the `in` input axes are chosen as there are free directions. N is the basis whose
    columns are together nearest to them (the polar factor of their projections: N at those rows is
    symmetric and positive semi-definite). The rows of the thinner side's projector pick the axes
    that are left out, or the chosen ones if those are fewer. They go by the largest residual, as a
    QR decomposition with column pivoting does, a block at a time. Fixed weights within 10 % of each
    other decide between equal rows.

    N depends on the projector N N^T alone, not on the stored side, nor on how a basis is turned.
    Rounding of the stored basis moves N by as much, unless it changes the choice of an axis, which
    moves that axis' coordinates. It is made in float64 on the host, by about
    4 in k^2 + 22 k^3 + 2 in^2 k operations a layer, with k the columns of the thinner side.

    Returns:
      float32 [*stack, in, most free directions], zero columns as padding; a "rows" site's mask.

    Raises:
      ValueError: if the basis is spread over processes.

    >>> protected = np.array([[0.6], [0.8]], np.float32)
    >>> site = projection.Site(("w",), protected, "protected", np.int32(1))
    >>> bool(np.allclose(nearest_basis(site), [[0.8], [-0.6]]))
    True
    >>> bool(np.allclose(nearest_basis(site), nearest_basis(site.complement())))
    True
    """
    if site.side == projection.ROWS:
        return site.basis
    if isinstance(site.basis, jax.Array) and not (
        site.basis.is_fully_addressable or site.basis.is_fully_replicated
    ):
        raise ValueError(
            f"The basis of {', '.join(site.kernels)} is spread over processes, but its coordinates "
            "are made on each host. Load the projectors without shardings; shard the state instead."
        )
    ranks = np.asarray(site.ranks).reshape(-1)
    bases = np.asarray(site.basis, np.float64).reshape(len(ranks), site.size, -1)
    protected = site.side == projection.PROTECTED
    found = [_nearest(basis[:, :rank], protected) for basis, rank in zip(bases, ranks, strict=True)]
    return projection.stack_bases(found).reshape(*np.shape(site.ranks), site.size, -1)


def _nearest(basis: np.ndarray, protected: bool) -> np.ndarray:
    """Makes `nearest_basis` of one layer, from either side's basis [in, k]: float64 [in, free]."""
    size, columns = basis.shape
    if 2 * columns < size or (2 * columns == size and protected):
        thin = np.linalg.qr(basis)[0]
    else:
        thin, protected = np.linalg.qr(basis, mode="complete")[0][:, columns:], not protected
    rows = _independent_rows(thin)
    left, values, right = np.linalg.svd(thin[rows])
    turned = thin @ (left @ right).T  # its block at `rows` is symmetric, positive semi-definite
    if not protected:
        return turned
    others = np.setdiff1d(np.arange(size), rows)
    cross = turned[others]
    null = np.empty((size, len(others)))
    null[rows] = -cross.T
    # the complement's own symmetric block, which needs no root: I - cross (I + H)^-1 cross^T
    within = cross @ left
    null[others] = np.eye(len(others)) - (within / (1 + values)) @ within.T
    return null


def _independent_rows(basis: np.ndarray, block: int = 64) -> np.ndarray:
    """Picks as many rows of a basis [in, k] as it has columns, far from dependent.

    Each block takes those of the rows with the largest residuals that keep half of it beside the
    ones before them. The indices are ascending.
    """
    size, columns = basis.shape
    weights = 1 + _WEIGHTS_SPREAD * np.modf(np.arange(1, size + 1) * _GOLDEN_SECTION)[0]
    rest = basis * weights[:, None]
    chosen = np.zeros(0, np.int64)
    while len(chosen) < columns:
        sizes = np.sum(rest**2, axis=1)
        sizes[chosen] = -1.0
        largest = np.argsort(-sizes, kind="stable")[: min(block, columns - len(chosen))]
        part, left, taken = rest[largest].copy(), sizes[largest].copy(), []
        while len(taken) < len(largest):
            best = int(np.argmax(left))
            if taken and left[best] < 0.5 * sizes[largest[len(taken)]]:
                break
            taken.append(best)
            direction = part[best] / np.linalg.norm(part[best])
            part -= np.outer(part @ direction, direction)
            left = np.sum(part**2, axis=1)
            left[taken] = -1.0
        chosen = np.concatenate([chosen, largest[taken]])
        directions = np.linalg.qr(rest[largest[taken]].T)[0]
        rest -= (rest @ directions) @ directions.T
    return np.sort(chosen)
