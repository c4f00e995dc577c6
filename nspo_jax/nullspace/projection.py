"""The null-space projection as an optax transform. This file imports jax, numpy and optax alone.

A linear site has a kernel `W [in, out]` and sees inputs `x [tokens, in]`. The directions of the
base model's inputs on general text span its *protected* subspace `U [in, rank]`; the orthogonal
complement `N [in, in - rank]` is the null space (NSPO, arXiv 2512.11391). An update inside the null
space, `dW = N N^T dW = dW - U U^T dW`, leaves `x @ W` unchanged for every protected `x`.

There are two ways to keep an optimizer there:

- `null_space_projection(projectors)` is a transform that projects whatever reaches it. Put it
  *last* in the chain: Adam's division by its second moment, weight decay and everything else that
  mixes input directions would carry the update out again.
- `in_null_space(optimizer, projectors)`, in coordinates.py, runs any optimizer in the coordinates
  `N^T g`, and maps its update back with `N`.

Both keep their bases in the optimizer state, so that jit does not bake them in as constants and
checkpoints and shardings see them.

Not every parameter has a kernel's null space. An embedding sees one-hot inputs, so its null space
is the rows of unseen tokens, which `embedding_site` masks. A bias or a norm's scale sees a
constant, so its null space is {0}: freeze it if the guarantee is to hold. In LoRA's
`x W + (x A) B`, project `A` alone and start it inside the null space with `init_lora_a`. Both
functions are in special_sites.py.
"""

import collections
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

PROTECTED = "protected"
NULL = "null"
ROWS = "rows"


@dataclasses.dataclass(frozen=True)
class Site:
    """One input of the network, whose basis is shared by the kernels that read it.

    Attributes:
      kernels: parameter paths, joined by "/", such as "layers/mlp/gate/kernel".
      basis: float32 [*stack, in, k], orthonormal columns; `stack` are leading axes that the kernels
        have too (scanned layers). If the rank differs along the stack, zero columns pad it. With
        side "rows" it is a mask, float32 [*stack, in, 1], 1 where the kernel's row may move.
      side: "protected" if the columns span U, "null" if they span N, whichever is thinner; "rows"
        for one-hot inputs, where N is a set of rows and a dense basis would be [in, free].
      ranks: int [*stack], the number of columns without padding, or of free rows with "rows".

    Examples:
      The first of three inputs is protected:

      >>> import numpy as np
      >>> import nspo_jax
      >>> basis = np.array([[1.0], [0.0], [0.0]], np.float32)  # [in, k]
      >>> site = nspo_jax.Site(("dense/kernel",), basis, "protected", np.int32(1))
      >>> site.project(np.ones((3, 2), np.float32)).tolist()
      [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
      >>> site.dense_projector().diagonal().tolist()
      [0.0, 1.0, 1.0]
    """

    kernels: tuple[str, ...]
    basis: np.ndarray | jax.Array
    side: str
    ranks: np.ndarray | np.integer

    def __post_init__(self):
        if self.side not in (PROTECTED, NULL, ROWS):
            raise ValueError(f"side is {self.side!r}; expected {PROTECTED}, {NULL} or {ROWS}.")
        if self.basis.ndim < 2 or np.shape(self.ranks) != self.basis.shape[:-2]:
            raise ValueError(
                f"The basis for {self.kernels} has shape {self.basis.shape} and ranks of shape "
                f"{np.shape(self.ranks)}; expected [*stack, in, k] and [*stack]."
            )
        if self.side == ROWS and self.basis.shape[-1] != 1:
            raise ValueError(
                f"The row mask for {self.kernels} has shape {self.basis.shape}; expected "
                "[*stack, in, 1]."
            )

    @property
    def size(self) -> int:
        """The number of input dimensions, `in`."""
        return self.basis.shape[-2]

    @property
    def protected_ranks(self) -> np.ndarray | np.integer:
        """The dimensions of the protected subspace, int [*stack]."""
        return self.ranks if self.side == PROTECTED else self.size - self.ranks

    def complement(self) -> "Site":
        """Returns the same split from its other side (host, float64 QR, exact to float32).

        Raises:
          ValueError: for a mask of rows, which has one side.
        """
        if self.side == ROWS:
            raise ValueError(f"{self.kernels} has a mask of rows, which is not a dense basis.")
        ranks = np.asarray(self.ranks).reshape(-1)
        # the sizes are given, since -1 cannot be inferred for a side without columns
        shape = (len(ranks), self.size, self.basis.shape[-1])
        bases = np.asarray(self.basis, np.float64).reshape(shape)
        others = [
            np.linalg.qr(basis[:, :rank], mode="complete")[0][:, rank:]
            for basis, rank in zip(bases, ranks, strict=True)
        ]
        return Site(
            kernels=self.kernels,
            basis=stack_bases(others).reshape(*self.basis.shape[:-1], -1),
            side=NULL if self.side == PROTECTED else PROTECTED,
            ranks=np.asarray(self.size - np.asarray(self.ranks)),
        )

    def project(self, update: jax.Array | np.ndarray) -> jax.Array:
        """Projects a kernel's update, gradient or change onto the null space.

        Args:
          update: [*stack, *in_axes, *out_axes], the shape of a kernel of the site, any float dtype.

        Returns:
          The projected array, same shape and dtype; see the function `project`.

        Raises:
          ValueError: if the shape is not that of a kernel of the site.
        """
        update = jnp.asarray(update)
        if not _fits(update.shape, self.basis.shape):
            raise ValueError(
                f"An update of shape {update.shape} for {', '.join(self.kernels)}: expected "
                f"[*stack, *in_axes, *out_axes] that starts with {self.basis.shape[:-1]}, the "
                "input axes taken together, and goes on with an output axis."
            )
        return project(update, jnp.asarray(self.basis), self.side)

    def dense_projector(self) -> np.ndarray:
        """Returns the whole `N N^T`, float32 [*stack, in, in], for people or other code.

        It has in^2 numbers a layer, and the basis only `in` times its columns; `project` computes
        the same product without it.
        """
        eye = jnp.broadcast_to(jnp.eye(self.size), (*self.basis.shape[:-2], self.size, self.size))
        return np.asarray(self.project(eye))

    def null_basis(self) -> np.ndarray | jax.Array:
        """Returns N, zero-padded float32 [*stack, in, max free dimensions], or a "rows" mask.

        Its columns depend on the stored side; those of `coordinates.nearest_basis` do not.
        """
        return self.basis if self.side in (NULL, ROWS) else self.complement().basis

    def protected_basis(self) -> np.ndarray | jax.Array:
        """Returns U, zero-padded float32 [*stack, in, max protected dimensions]."""
        return self.basis if self.side == PROTECTED else self.complement().basis


def stack_bases(bases: list[np.ndarray]) -> np.ndarray:
    """Pads bases [in, k_i] with zero columns to one float32 array [len(bases), in, max k_i]."""
    width = max(basis.shape[1] for basis in bases)
    return np.stack(
        [np.pad(basis, ((0, 0), (0, width - basis.shape[1]))) for basis in bases]
    ).astype(np.float32)


def path_string(path: tuple[Any, ...]) -> str:
    """Joins a leaf's path by "/", alike for a dict, an `nnx.State` and a linen tree."""
    names = [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    ]
    if names and names[-1] == "value" and isinstance(path[-1], jax.tree_util.GetAttrKey):
        names.pop()  # nnx wraps every array in a Variable
    return "/".join(names)


def _einsum(subscripts: str, *operands: np.ndarray | jax.Array) -> jax.Array:
    # HIGHEST: TPUs and GPUs would multiply float32 in bfloat16 or TF32 and leak 1e-3 of the update
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)


def _as_matrix(kernel: jax.Array, basis: np.ndarray | jax.Array) -> jax.Array:
    """Reshapes [*stack, *in_axes, *out_axes] to float32 [*stack, in, out]."""
    return kernel.reshape(*basis.shape[:-1], -1).astype(jnp.float32)


def coordinates(kernel: jax.Array, basis: np.ndarray | jax.Array) -> jax.Array:
    """Computes `basis^T kernel`, float32 [*stack, k, out], of [*stack, *in_axes, *out_axes]."""
    return _einsum("...ik,...io->...ko", basis, _as_matrix(kernel, basis))


def from_coordinates(
    values: jax.Array, basis: np.ndarray | jax.Array, like: jax.Array
) -> jax.Array:
    """Computes `basis values` in the shape and dtype of `like`, the transpose of `coordinates`."""
    return _einsum("...ik,...ko->...io", basis, values).reshape(like.shape).astype(like.dtype)


def project(update: jax.Array, basis: np.ndarray | jax.Array, side: str) -> jax.Array:
    """Projects an update onto the null space: `N N^T dW`, or `dW - U U^T dW`.

    Args:
      update: [*stack, *in_axes, *out_axes], any float dtype; attention kernels may keep their
        [d, heads, head_dim] or [heads, head_dim, d] shape.
      basis: float32 [*stack, in, k] with orthonormal columns, where `in` is the product of the
        input axes; or the mask of a "rows" site.
      side: "null" if the columns span N, "protected" if they span U, "rows" for a mask.

    Returns:
      The projected update, same shape and dtype; the products are float32 at highest precision.
    """
    if side == ROWS:  # where, not a product: 0 * inf is no 0
        free = jnp.where(basis > 0, update.reshape(*basis.shape[:-1], -1), 0)
        return free.reshape(update.shape)
    inside = from_coordinates(coordinates(update, basis), basis, jnp.empty(update.shape))
    if side == PROTECTED:
        inside = update.astype(jnp.float32) - inside
    return inside.astype(update.dtype)


class ProjectionState(NamedTuple):
    """The state of `null_space_projection`.

    bases: site name -> float32 [*stack, in, k].
    count: int32 scalar, updates seen; None if the period is 1.
    pending: kernel path -> float32, the weight change since the last projection; None if the period
      is 1.
    """

    bases: dict[str, jax.Array]
    count: jax.Array | None = None  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.count
    pending: dict[str, jax.Array] | None = None


def null_space_projection(projectors: Any, *, period: int = 1) -> optax.GradientTransformation:
    """Projects updates onto the null space. It must be the last transform of the chain.

    Kernels that no projector names pass through unchanged. Freeze them if the guarantee is to hold
    for the network as a whole, since an unprojected layer changes the inputs of projected ones.

    Args:
      projectors: `Projectors`, or a mapping from site name to `Site`.
      period: 1 projects every update, which is the method. k > 1 lets k updates through and then
        projects their sum, as the authors' released code does; it is kept for ablation.

    Raises:
      ValueError: at `init`, if a projector matches no parameter or its size differs.

    Examples:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> import nspo_jax
      >>> seen = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # [tokens, in]
      >>> site = nspo_jax.site_from_moment(("w",), seen.T @ seen, "fixed(2)")
      >>> last = nspo_jax.null_space_projection({"input": site})
      >>> optimizer = optax.chain(optax.adamw(0.1), last)
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, _ = optimizer.update({"w": jnp.ones((3, 2))}, optimizer.init(params), params)
      >>> float(jnp.abs(seen @ updates["w"]).max()) < 1e-6, bool(jnp.all(updates["w"][2] < -0.09))
      (True, True)
    """
    sites = sites_of(projectors)
    if period < 1:
        raise ValueError(f"period is {period}; expected 1 (every update) or more.")

    def init(params: optax.Params) -> Any:  # optax's type OptState allows no None
        leaves = match_kernels(sites, params)
        bases = copy_bases({name: site.basis for name, site in sites.items()})
        if period == 1:
            return ProjectionState(bases)
        pending = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in leaves.items()}
        return ProjectionState(bases, jnp.zeros([], jnp.int32), pending)

    def update(updates, state: Any, params=None) -> Any:
        del params
        if period == 1:
            return map_kernels(
                lambda leaf, site, _: project(leaf, state.bases[site], sites[site].side),
                sites, updates,
            ), state  # fmt: skip
        count = state.count + 1
        due = count % period == 0
        pending = {}

        def accumulate(leaf, site, path):
            total = state.pending[path] + leaf
            kept = project(total, state.bases[site], sites[site].side)
            pending[path] = jnp.where(due, 0.0, total)
            return jnp.where(due, leaf + (kept - total).astype(leaf.dtype), leaf)

        updates = map_kernels(accumulate, sites, updates)
        return updates, ProjectionState(state.bases, count, pending)

    return optax.GradientTransformation(init, update)


def copy_bases(bases: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Copies bases to the device, since a step may donate its state but not the caller's arrays."""
    return {name: jnp.array(basis, copy=True) for name, basis in bases.items()}


def sites_of(projectors: Any) -> dict[str, Site]:
    """Returns the name -> Site mapping of `Projectors` or of a plain mapping."""
    sites = getattr(projectors, "sites", projectors)
    if not isinstance(sites, Mapping) or not sites:
        raise ValueError(
            f"projectors is {projectors!r}; expected a non-empty Projectors or a mapping from site "
            "name to Site. Did the targets select nothing?"
        )
    empty = [  # an embedding with every row protected is not listed: it is merely frozen
        name
        for name, site in sites.items()
        if site.side != ROWS and np.all(site.protected_ranks == site.size)
    ]
    if empty:
        raise ValueError(
            f"The null space of {', '.join(empty)} is empty: every direction is protected, so that "
            "nothing could be learned there. Free more with the rank rule (a larger alpha or "
            "energy), or leave that target out."
        )
    paths = collections.Counter(path for site in sites.values() for path in site.kernels)
    twice = [path for path, count in paths.items() if count > 1]
    if twice:
        raise ValueError(f"Kernels named by more than one site: {', '.join(twice)}.")
    return dict(sites)


def match_kernels(sites: Mapping[str, Site], params: optax.Params) -> dict[str, jax.Array]:
    """Finds the projected kernels in a parameter tree.

    Returns:
      path -> leaf for every kernel of every site.

    Raises:
      ValueError: naming each projector that matches no parameter or whose size differs.
    """
    leaves = leaves_by_path(params)
    found, problems = {}, []
    for name, site in sites.items():
        for path in site.kernels:
            if path not in leaves:
                problems.append(f"{path} (site {name}): no such parameter")
            elif not _fits(leaves[path].shape, site.basis.shape):
                problems.append(
                    f"{path} (site {name}): the kernel has shape {leaves[path].shape}, which does "
                    f"not start with {site.basis.shape[:-1]} and go on with an output axis, as the "
                    f"basis {site.basis.shape} expects"
                )
            else:
                found[path] = leaves[path]
    if problems:
        known = ", ".join(list(leaves)[:12]) + (", ..." if len(leaves) > 12 else "")
        raise ValueError(
            "Projectors do not fit the parameters:\n  " + "\n  ".join(problems) + "\n"
            f"The parameters are: {known}. Projectors belong to the model that they were "
            "calibrated on, and every projected kernel must be among the trained ones: "
            "projectors.select('mlp+attention') keeps the sites of some."
        )
    narrow = sorted({str(leaf.dtype) for leaf in found.values() if leaf.dtype != jnp.float32})
    if narrow:
        _warn_once(
            f"Projected kernels are {', '.join(narrow)}. Adding a small update to such a weight "
            "rounds it by more than the projection removes, so the null-space property is lost; "
            "keep float32 master weights."
        )
    return found


@functools.cache
def _warn_once(message: str) -> None:
    """Warns once a process and reason, since `init` runs for every shape evaluation and restore."""
    warnings.warn(message, stacklevel=4)


def _fits(kernel: tuple[int, ...], basis: tuple[int, ...]) -> bool:
    """Tells whether [*stack, *in_axes, *out_axes] splits into [*stack, in, out] for this basis."""
    stack = len(basis) - 2
    if kernel[:stack] != basis[:-2]:
        return False
    sizes = np.cumprod(kernel[stack:])
    return len(sizes) > 1 and basis[-2] in sizes[:-1]


def leaves_by_path(tree: optax.Params) -> dict[str, jax.Array]:
    """Returns path string -> leaf, in the tree's order."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_kernels(function, sites: Mapping[str, Site], tree):
    """Applies `function(leaf, site_name, path)` to the sites' kernels and leaves the rest alone."""
    owner = {path: name for name, site in sites.items() for path in site.kernels}

    def visit(path, leaf):
        path = path_string(path)
        return function(leaf, owner[path], path) if path in owner else leaf

    return jax.tree_util.tree_map_with_path(visit, tree)
