"""Where activations lie on a mesh: their rows over its data and fsdp axes.

Parameters that are sharded over fsdp are gathered where they are used; without being told, XLA may
gather the activations instead, which are larger. Outside of `jax.set_mesh` nothing is said.
"""

import math

import jax

AXES = ("data", "fsdp")


def shards_of(rows: int) -> int:
    """Into how many parts the mesh divides so many rows: 1 outside of one, or where it cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(mesh.shape[name] for name in AXES if name in mesh.axis_names)
    return 1 if rows % shards else shards


def shard_rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """The same array, its rows (one axis) over the mesh; the other axes as XLA likes.

    An axis that does not divide stays as it is.
    """
    if shards_of(x.shape[axis]) == 1:
        return x
    spec = [jax.sharding.PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = AXES
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(*spec))
