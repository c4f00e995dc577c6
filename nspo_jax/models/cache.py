"""The key-value cache for decoding, shared slot by slot by all rows of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nspo_jax import sharding
from nspo_jax.models import architecture


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, with slot s of every row written together.

    Attributes:
      keys: [layers, batch, slots, kv_heads, head_dim] in the compute dtype, already rotated.
      values: [layers, batch, slots, kv_heads, head_dim] in the compute dtype.
      valid: [batch, slots] bool, True where a slot holds a real token.
      length: int32 scalar, slots written so far (padding included).
      positions: [batch] int32, the position of each row's next real token.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    length: jax.Array
    positions: jax.Array


def empty_cache(model_config: architecture.ModelConfig, batch: int, size: int) -> Cache:
    """Makes a cache with `size` free slots for each of `batch` rows.

    Raises:
      ValueError: `size` exceeds `model_config.max_length`.
    """
    if size > model_config.max_length:
        raise ValueError(
            f"A cache of {size} slots for a model of max_length {model_config.max_length}: ask for "
            "fewer (prompt + new tokens)."
        )
    shape = (model_config.num_layers, batch, size, model_config.num_kv_heads, model_config.head_dim)
    return Cache(
        keys=sharding.shard_rows(jnp.zeros(shape, model_config.compute_dtype), 1),
        values=sharding.shard_rows(jnp.zeros(shape, model_config.compute_dtype), 1),
        valid=jnp.zeros((batch, size), bool),
        length=jnp.zeros((), jnp.int32),
        positions=jnp.zeros((batch,), jnp.int32),
    )


def repeat_cache(cache: Cache, n: int) -> Cache:
    """Repeats each row n times in place: row i becomes rows i * n to i * n + n - 1."""
    return Cache(
        keys=sharding.shard_rows(jnp.repeat(cache.keys, n, axis=1), 1),
        values=sharding.shard_rows(jnp.repeat(cache.values, n, axis=1), 1),
        valid=jnp.repeat(cache.valid, n, axis=0),
        length=cache.length,
        positions=jnp.repeat(cache.positions, n, axis=0),
    )


def append_to_cache(cache: Cache, keys: jax.Array, values: jax.Array, mask: jax.Array) -> Cache:
    """Writes new keys and values after the slots in use.

    Args:
      cache: a cache with room. Jitted code cannot refuse a full one, and would overwrite its last
        slots.
      keys: [layers, batch, time, kv_heads, head_dim].
      values: [layers, batch, time, kv_heads, head_dim].
      mask: [batch, time] bool, True at real tokens.
    """
    start = (0, 0, cache.length, 0, 0)
    return Cache(
        keys=jax.lax.dynamic_update_slice(cache.keys, keys.astype(cache.keys.dtype), start),
        values=jax.lax.dynamic_update_slice(cache.values, values.astype(cache.values.dtype), start),
        valid=jax.lax.dynamic_update_slice(cache.valid, mask, (0, cache.length)),
        length=cache.length + mask.shape[1],
        positions=cache.positions + jnp.sum(mask, axis=1, dtype=jnp.int32),
    )
