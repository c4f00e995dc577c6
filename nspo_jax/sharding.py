"""The device mesh, and the rules that place the axes of arrays on it.

Axes: `data` replicates parameters, `fsdp` shards them and the batch, `tensor` shards kernels alone.
Projected kernels are sharded on their output axis first: there the projection needs no
communication, but the whole basis on every device. Shards of the input axis need one all-reduce of
[rank, out] a kernel, and only their rows of the basis.
"""

import functools
import math
import re
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from nspo_jax import distributed, trees

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # rows of batches and activations are sharded over these

# Path pattern -> axes from the last dimension backwards; leading dimensions are replicated. The
# first match wins and every parameter must have one. The tail of a path is enough, so optimizer
# moments, whose paths end like their parameters', follow the same rules.
RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"embed/embedding$", ("fsdp", None)),
    (r"attention/[qkv]/kernel$", (("fsdp", "tensor"), None)),
    (r"attention/[qkv]/bias$", (("fsdp", "tensor"),)),
    (r"attention/o/kernel$", ("fsdp", "tensor")),
    (r"mlp/(gate|up)/kernel$", (("fsdp", "tensor"), None)),
    (r"mlp/down/kernel$", ("fsdp", "tensor")),
    (r"head/kernel$", (("fsdp", "tensor"), None)),
    (r"score/kernel$", (None, "fsdp")),
    (r"norm/scale$", (None,)),
)

# The same for bases, by their site's path in the optimizer state: a basis [*stack, in, k] is
# sharded if its kernels' input axis is. Others are replicated, as output shards need them whole.
BASIS_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"bases/.*(attention|mlp)/out$", (None, "tensor")),
)


_path = functools.partial(jax.tree_util.keystr, simple=True, separator="/")


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    """Makes a mesh over all devices; one axis may be -1, which takes the rest.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    devices = jax.device_count()
    free = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    bad = [name for name, size in sizes.items() if size < 1 and size != -1]
    if bad or len(free) > 1 or devices % known or (not free and known != devices):
        raise ValueError(
            f"The mesh {'x'.join(f'{name}={size}' for name, size in sizes.items())} does not fit "
            f"{devices} devices: the sizes must be positive and multiply to {devices}; one may be "
            "-1 to take the rest. Change config.mesh."
        )
    if free:
        sizes[free[0]] = devices // known
    # With Auto axes XLA's partitioner places the collectives; jax.make_mesh's default is Explicit.
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES)
    )


def mesh_from_config(config: Any) -> jax.sharding.Mesh:
    """Makes the mesh of a run's settings, `config.mesh`; raises the errors of `make_mesh`."""
    return make_mesh(**{axis: getattr(config.mesh, axis) for axis in AXES})


def check_batch(mesh: jax.sharding.Mesh, rows: int, what: str) -> None:
    """Raises ValueError unless `rows` divides over the mesh's data and fsdp axes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise ValueError(
            f"{what} is {rows} rows, which does not divide over data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']} = {shards} shards. Make it a multiple of {shards}, or "
            "change config.mesh."
        )


def shard_batch(mesh: jax.sharding.Mesh, batch: Any) -> Any:
    """Puts host arrays [rows, ...] on the mesh, with rows over data and fsdp."""
    return distributed.put(batch, NamedSharding(mesh, PartitionSpec(ROW_AXES)))


def replicate(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Puts a tree on every device."""
    return distributed.put(tree, NamedSharding(mesh, PartitionSpec()))


def shardings(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, tree: Any) -> Any:
    """Returns a NamedSharding for every leaf of a tree of parameters or optimizer state.

    Leaves without a rule (counts, bases of output shards) are replicated. An axis whose size does
    not divide is replicated too.
    """

    def sharding(path, leaf) -> NamedSharding:
        return NamedSharding(mesh, _spec(mesh, _path(path), leaf.shape, AXES))

    return jax.tree.map_with_path(sharding, tree)


def shards_of(rows: int) -> int:
    """Returns the number of parts that the mesh divides rows into; 1 if none or if it cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(mesh.shape[name] for name in ROW_AXES if name in mesh.axis_names)
    return 1 if rows % shards else shards


def shard_rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """Constrains an array's rows (one axis) to lie over the mesh; XLA places its other axes.

    Parameters that are sharded over fsdp are gathered where they are used. Without the constraint
    XLA may gather the activations instead, which are larger. An axis that does not divide stays as
    it is, and so does every array outside of `jax.set_mesh`.
    """
    if shards_of(x.shape[axis]) == 1:
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = ROW_AXES
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def constrain(tree: Any) -> Any:
    """Keeps a tree in its `shardings` under jit and `jax.set_mesh`; elsewhere returns it as is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings(mesh, tree))


def gather(params: Any, dtype: Any) -> Any:
    """Gathers parameters for a loop: matrices in `dtype`, whole on all devices of the fsdp axis.

    Otherwise every turn of the loop would gather them anew. Outside of jit and `jax.set_mesh` they
    are only converted. Shards of the tensor axis stay.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def whole(path, leaf):
        name = _path(path)
        if trees.is_matrix(name, leaf):
            # a matrix product would convert it too; before the gather, fewer bytes travel
            leaf = leaf.astype(dtype)
        if mesh.empty:
            return leaf
        spec = _spec(mesh, name, leaf.shape, ("tensor",))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map_with_path(whole, params)


def _spec(mesh, name: str, shape: tuple[int, ...], kept: tuple[str, ...]) -> PartitionSpec:
    """Returns the rule for a path, with the mesh's axes that are `kept`."""
    axes = next((axes for pattern, axes in RULES + BASIS_RULES if re.search(pattern, name)), ())
    spec: list = [None] * len(shape)
    for dimension, axis in zip(reversed(range(len(shape))), axes, strict=False):
        names = (axis,) if isinstance(axis, str) else axis or ()
        names = tuple(part for part in names if part in kept)
        shards = int(np.prod([mesh.shape[part] for part in names]))
        if shards > 1 and shape[dimension] % shards == 0:
            spec[dimension] = names[0] if len(names) == 1 else names
    return PartitionSpec(*spec)


def check_rules(params: Any) -> None:
    """Raises ValueError naming every parameter that no rule covers."""
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    loose = [path for path in paths if not any(re.search(rule, path) for rule, _ in RULES)]
    if loose:
        raise ValueError(f"No sharding rule covers {', '.join(loose)}: add one to sharding.RULES.")
