"""The scoring of rows of tokens by a model on the mesh, which guards and reward models share.

All batches have one shape, so that one program is compiled:

    tokens, mask = batched.pad_rows(ids, max_length)
    score = jax.jit(functools.partial(models.scores, config))     # once; parameters are arguments
    found = batched.score_rows(score, params, tokens, mask, mesh, batch_size)      # [rows]
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nspo_jax import distributed, sharding
from nspo_jax.data import chat


def pad_rows(ids: Sequence[Sequence[int]], length: int) -> chat.Encoded:
    """Pads token ids on the left: int32 [rows, length] and their mask, the last token last.

    Raises:
      ValueError: for a row of more tokens than `length`.
    """
    tokens = np.zeros((len(ids), length), np.int32)
    mask = np.zeros((len(ids), length), bool)
    for row, sequence in enumerate(ids):
        if len(sequence) > length:
            raise ValueError(
                f"Row {row} has {len(sequence)} tokens, more than the {length} that a row holds: "
                "cut it first, or raise the judge's max_length."
            )
        tokens[row, length - len(sequence) :] = sequence
        mask[row, length - len(sequence) :] = True
    return chat.Encoded(tokens, mask)


def score_rows(
    function: Callable[[Any, jax.Array, jax.Array], Any],
    params: Any,
    tokens: np.ndarray,
    mask: np.ndarray,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> Any:
    """Runs a model over this process's rows, together with those of all others. Collective.

    The rows of all processes are joined, in the order of the processes, cut into batches of
    `batch_size` (the last is filled with copies of the first row) and spread over the mesh, which
    is set while `function` runs.

    Args:
      function: jitted, from (params, tokens int32 [batch_size, length], mask bool, same shape) to
        an array or a tree of arrays [batch_size, ...]. A row's result depends on that row alone.
      params: the model's parameters, on the mesh.
      tokens: int32 [rows, length], on the host: this process's rows, as many as every other's.
      mask: bool, same shape.
      mesh: the device mesh.
      batch_size: rows at a time, of all processes; a multiple of the mesh's data and fsdp axes.

    Returns:
      The results of `function` for this process's rows: host arrays [rows, ...].

    Raises:
      ValueError: if batch_size does not divide over the mesh, or there are no rows.
    """
    sharding.check_batch(mesh, batch_size, "A judge's batch_size")
    if not len(tokens):
        raise ValueError("There are no rows to score: give at least one conversation.")
    tokens, mask = distributed.gather_rows((tokens, mask))
    count = len(tokens)
    parts = []
    for start in range(0, count, batch_size):
        index = np.arange(start, start + batch_size)
        index[index >= count] = 0
        with jax.set_mesh(mesh):
            found = function(params, *sharding.shard_batch(mesh, (tokens[index], mask[index])))
        parts.append(distributed.fetch(found))
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
    own = distributed.own_rows(count)
    return jax.tree.map(lambda array: array[own], whole)
