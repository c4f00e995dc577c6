"""The sources of weights for a forward pass that holds one layer at a time.

`ParamsSource` slices parameters in memory. `FileSource` reads a checkpoint's files, so that a model
larger than the device's memory, or the host's, can be run. See `embed`, `run_layer` and
`final_norm`.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import trees
from nspo_jax.models import architecture, hf, transformer


class LayerSource(Protocol):
    """A source of a model's weights, a part at a time."""

    @property
    def model_config(self) -> architecture.ModelConfig:
        """The model's config."""
        ...

    def part(self, name: str) -> transformer.Params:
        """Returns the parameters outside the layers below `name`, such as {"embed": ...}."""
        ...

    def layer(self, index: int) -> transformer.Params:
        """Returns the parameters of one layer, without the leading axis."""
        ...

    def fingerprint(self) -> str:
        """Returns the `models.fingerprint` of all parameters."""
        ...


@dataclasses.dataclass(frozen=True)
class ParamsSource:
    """A source of parameters in memory, such as those of `load_model`."""

    model_config: architecture.ModelConfig
    params: transformer.Params

    def part(self, name: str) -> transformer.Params:
        """Implements `LayerSource`."""
        return {name: self.params[name]}

    def layer(self, index: int) -> transformer.Params:
        """Implements `LayerSource`."""
        return jax.tree.map(lambda leaf: leaf[index], self.params["layers"])

    def fingerprint(self) -> str:
        """Implements `LayerSource`."""
        return hf.fingerprint(self.params)


class FileSource:
    """A source of a checkpoint's files, with no more in memory than the last part asked for.

    Args:
      directory: see `load_model`.
      compute_dtype: the dtype of activations.
      shardings: see `load_model`.

    Raises:
      FileNotFoundError, ValueError: for the reasons of `load_model`.
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
        """Implements `LayerSource`."""
        return self._read([path for path in self._abstract if path.split("/")[0] == name], None)

    def layer(self, index: int) -> transformer.Params:
        """Implements `LayerSource`."""
        paths = [path for path in self._abstract if trees.is_stacked(path)]
        return self._read(paths, index)["layers"]

    def fingerprint(self) -> str:
        """Computes the fingerprint once, reading all files; see `LayerSource`."""
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
