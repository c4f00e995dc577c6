"""Means over the rows of a batch that are computed part by part, in less memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def mean_in_parts(function: Callable[[Any], Any], batch: Any, parts: int, group: int = 1) -> Any:
    """Computes `function(batch)`, a tree of means over rows, one part of the rows at a time.

    Args:
      function: from a batch to a tree of arrays, each a mean over the batch's rows.
      batch: a tree of arrays [rows, ...].
      parts: the number of equal parts of the rows, whose results are added up.
      group: the number of neighbouring rows that a part holds together.
    """
    if parts == 1:
        return function(batch)

    def split(array: jax.Array) -> jax.Array:
        # every part has rows of each device's block, so that no row travels
        grouped = array.reshape(-1, parts, group, *array.shape[1:])
        return jnp.moveaxis(grouped, 1, 0).reshape(parts, -1, *array.shape[1:])

    def part(total, rows):
        return jax.tree.map(lambda t, x: t + x / parts, total, function(rows)), None

    shapes = jax.eval_shape(function, batch)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(part, zeros, jax.tree.map(split, batch))[0]
