"""Endless shuffled batches, on grain, whose position can be saved."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

Arrays = dict[str, np.ndarray]
# The seeds of a mixture's parts are this far apart, so that runs of neighbouring seeds share none.
_SEED_STRIDE = 7919


class _Rows:
    """A grain source of the rows of arrays with equal leading axes."""

    def __init__(self, arrays: Arrays):
        self._arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> Arrays:
        return {name: array[index] for name, array in self._arrays.items()}


def batches(arrays: Arrays, batch_size: int, seed: int) -> grain.DatasetIterator:
    """Makes endless batches in an order that is new every epoch and depends on `seed` alone.

    Args:
      arrays: name -> array [rows, ...].
      batch_size: rows of a batch; may exceed the number of rows, which are then repeated.
      seed: the seed of the order.

    Returns:
      An iterator of dicts of arrays; `get_state()` and `set_state()` save and restore its position.

    Raises:
      ValueError: if there are no rows, or the arrays' lengths differ.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(f"Rows to draw batches from: {lengths}; expected one positive number.")
    # rows are slices of arrays in memory, so worker threads would not help
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    rows = grain.MapDataset.source(_Rows(arrays)).seed(seed).shuffle().repeat()
    # the repeated rows never end, so no row is dropped; a length rounded up would overflow
    return iter(rows.batch(batch_size, drop_remainder=True).to_iter_dataset(options))


def check_digest(state: dict[str, Any], digest: str, what: str, count: str = "") -> None:
    """Raises ValueError if a saved position belongs to other data than the present.

    Args:
      state: a position, with the digest of its data.
      digest: the present data's digest.
      what: the data's name, such as "pairs".
      count: the amount of it, in the words that continue the message.
    """
    if state.get("digest") != digest:
        raise ValueError(
            f"The run was trained on other {what}: their digest is {state.get('digest')} in its "
            f"checkpoint and {digest} now{count}. Restore the dataset, or start in another "
            "--workdir."
        )


class MixedBatches:
    """Batches with a fixed number of rows from each of several sets, concatenated in order.

    Raises:
      ValueError: if there are no sets, or their arrays have different names.
    """

    def __init__(self, parts: Sequence[tuple[Arrays, int]], seed: int):
        names = [sorted(arrays) for arrays, _ in parts]
        if not parts or any(given != names[0] for given in names):
            raise ValueError(f"Sets of rows to mix: {names}; expected one or more, named alike.")
        self._parts = [
            batches(arrays, count, seed + _SEED_STRIDE * index)
            for index, (arrays, count) in enumerate(parts)
        ]

    def __next__(self) -> Arrays:
        drawn = [next(part) for part in self._parts]
        return {name: np.concatenate([rows[name] for rows in drawn]) for name in drawn[0]}

    def __iter__(self) -> "MixedBatches":
        return self

    def get_state(self) -> dict[str, Any]:
        """Returns the position, JSON-able."""
        return {"parts": [part.get_state() for part in self._parts]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position of the same parts.

        Raises:
          ValueError: if the number of parts differs.
        """
        if len(state["parts"]) != len(self._parts):
            raise ValueError(
                f"The saved position is of {len(state['parts'])} sets of prompts, but there are "
                f"{len(self._parts)}: the run's data configuration changed."
            )
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.set_state(saved)
