"""The heads on final hidden states: next-token logits, or one scalar a token.

A scalar head makes a reward, cost or value model. A reward is its value at a sequence's last token,
as in transformers' ForSequenceClassification with one label; a value function reads every token.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nspo_jax import sharding
from nspo_jax.models import architecture, layers, transformer

# So many logits, 1 GiB in float32, are in memory at once.
CHUNK_ELEMENTS = 2**28


def logits(
    model_config: architecture.ModelConfig, params: transformer.Params, hidden: jax.Array
) -> jax.Array:
    """Returns next-token logits, float32 [..., vocab], of final hidden states [..., d]."""
    return transformer.bind(model_config, params).logits(hidden)


def map_positions(
    model_config: architecture.ModelConfig, function: Callable[..., Any], *arrays: jax.Array
) -> Any:
    """Applies a function of logits to every position without holding all logits at once.

    Positions are taken in chunks, one after another, such that a device's part of [batch, chunk,
    vocab] stays within `CHUNK_ELEMENTS`, with at least one position of each row. Gradients
    recompute a chunk's logits instead of keeping them. Positions that fit at once are one chunk.

    Args:
      model_config: the model, whose vocabulary decides the chunk.
      function: takes the arrays cut to [batch, chunk, ...], such as hidden states and tokens, and
        returns a tree of arrays [batch, chunk, ...]. It treats positions independently.
      *arrays: each [batch, time, ...].

    Returns:
      The function's result for all positions, arrays [batch, time, ...].
    """
    batch, time = arrays[0].shape[:2]
    chunk = max(1, CHUNK_ELEMENTS * sharding.shards_of(batch) // (batch * model_config.vocab_size))
    if chunk >= time:
        return function(*arrays)
    count = -(-time // chunk)

    def split(array):  # [batch, time, ...] -> [chunks, batch, chunk, ...]
        padding = [(0, 0)] * array.ndim
        padding[1] = (0, count * chunk - time)
        pieces = jnp.pad(array, padding).reshape(batch, count, chunk, *array.shape[2:])
        return sharding.shard_rows(jnp.moveaxis(pieces, 1, 0), 1)

    def join(pieces):
        joined = jnp.moveaxis(pieces, 0, 1)
        return joined.reshape(batch, count * chunk, *pieces.shape[3:])[:, :time]

    pieces = jax.lax.map(
        jax.checkpoint(lambda piece: function(*piece)), tuple(split(array) for array in arrays)
    )
    return jax.tree.map(join, pieces)


def with_scalar_head(
    model_config: architecture.ModelConfig, params: transformer.Params, key: jax.Array
) -> tuple[architecture.ModelConfig, transformer.Params]:
    """Returns the same decoder with a fresh scalar head in place of its language-model head.

    Args:
      model_config: a language model's config.
      params: its parameters; shared, not copied.
      key: the PRNG key of the head's initial weights, normal 0.02.
    """
    params = {name: value for name, value in params.items() if name != "head"}
    kernel = jax.random.normal(key, (model_config.hidden_size, 1), jnp.float32)
    params["score"] = {"kernel": layers.INIT_STDDEV * kernel}
    return dataclasses.replace(model_config, head="scalar"), params


def values(
    model_config: architecture.ModelConfig, params: transformer.Params, hidden: jax.Array
) -> jax.Array:
    """Applies a scalar head to final hidden states [batch, time, d]: float32 [batch, time].

    Raises:
      ValueError: the model has no scalar head.
    """
    if model_config.head != "scalar":
        raise ValueError(
            f"head is {model_config.head!r}: values need a model with a scalar head; make one of a "
            "language model with with_scalar_head."
        )
    return transformer.bind(model_config, params).values(hidden)


def scores(
    model_config: architecture.ModelConfig,
    params: transformer.Params,
    tokens: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """Returns a reward or cost model's score of each sequence, its value at the last real token.

    Args:
      model_config: a model with a scalar head.
      params: its parameters.
      tokens: int32 [batch, time].
      mask: bool [batch, time], False at padding, which may be anywhere.

    Returns:
      float32 [batch].

    Raises:
      ValueError: the model has no scalar head.
    """
    hidden = transformer.forward(model_config, params, tokens, mask).hidden
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1])[None, :], 0), axis=1)  # [batch]
    at_last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)  # [batch, 1, d]
    return values(model_config, params, at_last)[:, 0]
