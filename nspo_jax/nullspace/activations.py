"""The base model's activations on a text, a layer at a time.

Memory holds the hidden states between two layers, for all batches, and one layer's weights. Its
peak does not grow with depth, and the weights may stay on disk (`models.FileSource`).
"""

from collections.abc import Callable, Iterable
import contextlib
import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from nspo_jax import models, sharding

Batch = dict[str, np.ndarray]  # "tokens" int32, "mask" bool, "answer_mask" bool: [batch, time]
# (site, inputs float32 [batch * time, in], batch, extra) -> any pytree of arrays, reduced over
# tokens. It is compiled with the layer, once for each such function.
ObserveBatch = Callable[[str, jax.Array, dict[str, jax.Array], Any], Any]
# (result so far, None at first; site -> the result of `observe` for one batch) -> new result
Fold = Callable[[Any, dict[str, Any]], Any]


class Activations:
    """A forward pass over all batches that moves on by a layer.

    Args:
      source: the model's weights.
      batches: arrays [batch, time]: "tokens", "mask", and any others that `observe` reads.
      mesh: the device mesh, whose data and fsdp axes share the rows of every batch; None: one
        device.
    """

    def __init__(
        self,
        source: models.LayerSource,
        batches: Iterable[Batch],
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._source, self._mesh = source, mesh
        self._batches = [self._place(batch) for batch in batches]
        embedding = source.part("embed")
        embed = _embed(mesh)
        self._hidden = [embed(source.model_config, embedding, batch) for batch in self._batches]
        self._next = 0

    def run_layer(
        self, observe: ObserveBatch | None = None, fold: Fold | None = None, extra: Any = None
    ) -> Any:
        """Runs the next layer on every batch.

        Args:
          observe: a function that is called at each of the layer's sites, under jit; None: no call.
          fold: a function that gathers its results, on the host.
          extra: a pytree for `observe`, such as a layer of other weights.

        Returns:
          The last result of `fold`.
        """
        model_config, index, total = self._source.model_config, self._next, None
        window = model_config.windows[index] if model_config.windows else 0
        layer = self._source.layer(index)
        run = _run_layer(self._mesh)
        for place, batch in enumerate(self._batches):
            with self._context():
                self._hidden[place], observed = run(
                    model_config, observe, layer, window, self._hidden[place], batch, extra
                )
            if observe is not None and fold is not None:
                total = fold(total, observed)
        self._next += 1
        return total

    def run_head(self, observe: ObserveBatch, fold: Fold, extra: Any = None) -> Any:
        """Does the same for the head's input, after the last layer."""
        norm, total = self._source.part("norm"), None
        for hidden, batch in zip(self._hidden, self._batches, strict=True):
            with self._context():
                observed = _run_head(self._mesh)(
                    self._source.model_config, observe, norm, hidden, batch, extra
                )
            total = fold(total, observed)
        return total

    def _context(self):
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _place(self, batch: Batch) -> dict[str, jax.Array]:
        if self._mesh is None:
            return jax.device_put(batch)
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        missing = -len(batch["tokens"]) % shards  # rows without real tokens do not count
        padded = {
            name: np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)))
            for name, array in batch.items()
        }
        return sharding.shard_batch(self._mesh, padded)


def lower_layer(
    model_config: models.ModelConfig, mesh, observe: ObserveBatch, layer, hidden, batch
):
    """Lowers the program of one layer on one batch, for abstract arrays: `jax.stages.Lowered`."""
    window = model_config.windows[0] if model_config.windows else 0
    return _run_layer(mesh).lower(model_config, observe, layer, window, hidden, batch, None)


def _rows(mesh):
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def _everywhere(mesh):
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


@functools.cache
def _embed(mesh):
    def embed(model_config, params, batch):
        return models.embed(model_config, params, batch["tokens"])

    return jax.jit(embed, static_argnums=0, out_shardings=_rows(mesh))


@functools.cache
def _run_layer(mesh):
    def run(model_config, observe, layer, window, x, batch, extra):
        at = None
        if observe is not None:
            at = lambda site, inputs: observe(site, inputs, batch, extra)  # noqa: E731
        return models.run_layer(model_config, layer, window, x, batch["mask"], at)

    return jax.jit(
        run,
        static_argnums=(0, 1),
        donate_argnums=4,
        out_shardings=(_rows(mesh), _everywhere(mesh)),  # the result sums over all devices' tokens
    )


@functools.cache
def _run_head(mesh):
    def run(model_config, observe, norm, x, batch, extra):
        x = models.final_norm(model_config, norm, x).astype(jax.numpy.float32)
        return {"head/in": observe("head/in", x, batch, extra)}

    return jax.jit(run, static_argnums=(0, 1), out_shardings=_everywhere(mesh))
