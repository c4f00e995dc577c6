"""Where a forward pass that holds one layer at a time takes its weights from.

`ParamsSource` slices parameters that are in memory; `FileSource` reads a checkpoint's files, so
that a model larger than the device's memory, or the host's, can be run. See `embed`, `run_layer`
and `final_norm`.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax.models import architecture, hf, transformer, trees


class LayerSource(Protocol):
    """A model's weights, a part at a time."""

    @property
    def model_config(self) -> architecture.ModelConfig:
        """The model; sizes and layers as in `transformer`."""
        ...

    def part(self, name: str) -> transformer.Params:
        """The parameters outside the layers that start with `name`: {"embed": ...}."""
        ...

    def layer(self, index: int) -> transformer.Params:
        """Those of one layer, without the leading axis."""
        ...

    def fingerprint(self) -> str:
        """`models.fingerprint` of the whole."""
        ...


@dataclasses.dataclass(frozen=True)
class ParamsSource:
    """Parameters in memory, as `load_model` gives them."""

    model_config: architecture.ModelConfig
    params: transformer.Params

    def part(self, name: str) -> transformer.Params:
        """See `LayerSource`."""
        return {name: self.params[name]}

    def layer(self, index: int) -> transformer.Params:
        """See `LayerSource`."""
        return jax.tree.map(lambda leaf: leaf[index], self.params["layers"])

    def fingerprint(self) -> str:
        """See `LayerSource`."""
        return hf.fingerprint(self.params)


class FileSource:
    """A checkpoint's directory: nothing is in memory but what was asked for last.

    Args:
      directory: as for `load_model`.
      compute_dtype: of activations.
      shardings: as for `load_model`.

    Raises:
      FileNotFoundError, ValueError: as `load_model`.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        compute_dtype: str = "float32",
        shardings: hf.Shardings | None = None,
    ):
        self._directory = pathlib.Path(directory)
        self.model_config = dataclasses.replace(
            hf.load_config(self._directory), compute_dtype=compute_dtype
        )
        self._tensors = hf.Tensors(self._directory)
        hf.check_tensors(self.model_config, self._tensors)
        abstract = transformer.abstract_params(self.model_config)
        self._abstract = trees.flatten(abstract)
        placed = hf.default_shardings(abstract) if shardings is None else shardings(abstract)
        self._placed = trees.flatten(placed)

    def part(self, name: str) -> transformer.Params:
        """See `LayerSource`."""
        return self._read([path for path in self._abstract if path.split("/")[0] == name], None)

    def layer(self, index: int) -> transformer.Params:
        """See `LayerSource`."""
        paths = [path for path in self._abstract if path.startswith("layers/")]
        return self._read(paths, index)["layers"]

    def fingerprint(self) -> str:
        """See `LayerSource`; reads all files once."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return hf.stored_fingerprint(self._directory, progress=True)

    def _read(self, paths: list[str], layer: int | None) -> transformer.Params:
        arrays: dict[str, Any] = {
            path: hf.load_parameter(
                self.model_config, self._tensors, path, self._abstract[path].shape,
                np.dtype(jnp.float32), self._placed[path], layer,
            )
            for path in paths
        }  # fmt: skip
        return trees.unflatten(arrays)
