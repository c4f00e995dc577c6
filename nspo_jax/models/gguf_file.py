"""Opened GGUF files: their metadata, their tensors' names, and weights multiplied out.

This needs the package `gguf`. llama.cpp's docs/gguf.md describes the keys.
"""

import collections
from collections.abc import Mapping
import dataclasses
import importlib
import os
import pathlib
from typing import Any

import numpy as np

# general.architecture -> the family
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
# Our parameter path -> the tensor's name in the file ({} is the layer).
TENSORS = {
    "embed/embedding": "token_embd.weight",
    "layers/attention_norm/scale": "blk.{}.attn_norm.weight",
    "layers/attention/q/kernel": "blk.{}.attn_q.weight",
    "layers/attention/k/kernel": "blk.{}.attn_k.weight",
    "layers/attention/v/kernel": "blk.{}.attn_v.weight",
    "layers/attention/o/kernel": "blk.{}.attn_output.weight",
    "layers/attention/q/bias": "blk.{}.attn_q.bias",
    "layers/attention/k/bias": "blk.{}.attn_k.bias",
    "layers/attention/v/bias": "blk.{}.attn_v.bias",
    "layers/attention/q_norm/scale": "blk.{}.attn_q_norm.weight",
    "layers/attention/k_norm/scale": "blk.{}.attn_k_norm.weight",
    "layers/attention_post_norm/scale": "blk.{}.post_attention_norm.weight",
    "layers/mlp_norm/scale": "blk.{}.ffn_norm.weight",
    "layers/mlp/gate/kernel": "blk.{}.ffn_gate.weight",
    "layers/mlp/up/kernel": "blk.{}.ffn_up.weight",
    "layers/mlp/down/kernel": "blk.{}.ffn_down.weight",
    "layers/mlp_post_norm/scale": "blk.{}.post_ffw_norm.weight",
    "norm/scale": "output_norm.weight",
    "head/kernel": "output.weight",
}
ROPE_FACTORS = "rope_freqs.weight"


@dataclasses.dataclass(frozen=True)
class File:
    """An open GGUF file, with its metadata in memory and its tensors on the disk.

    Attributes:
      path: the file's path.
      fields: the metadata by key; numbers, strings and lists of them.
      tensors: the tensors as `gguf.ReaderTensor`, by the file's name.
    """

    path: pathlib.Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]

    @property
    def quantisations(self) -> dict[str, int]:
        """The number of tensors by quantisation, the most frequent first."""
        kinds = collections.Counter(tensor.tensor_type.name for tensor in self.tensors.values())
        return dict(kinds.most_common())

    @property
    def architecture(self) -> str:
        """The value of general.architecture, one of `ARCHITECTURES`."""
        return self.fields["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key behind the architecture's name."""
        return self.fields.get(f"{self.architecture}.{key}", default)

    def require(self, key: str, kind: type = int) -> Any:
        """Returns the value that `get` finds; raises ValueError unless it is a positive number."""
        value = self.get(key)
        if type(value) is not kind or not value > 0:
            raise ValueError(
                f"{self.path}: {self.architecture}.{key} is {value!r}; expected a positive "
                f"{'whole number' if kind is int else 'number'}. Fetch or convert the file again."
            )
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape in numpy's order, [out, in] for a kernel."""
        return tuple(int(size) for size in self.tensors[name].shape[::-1])

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor, multiplied out to float32; raises ValueError for NaN and infinity."""
        tensor = self.tensors[name]
        array = library().quants.dequantize(tensor.data, tensor.tensor_type)
        array = array.astype(np.float32).reshape(self.shape(name))
        if not np.isfinite(array).all():
            raise ValueError(
                f"{self.path}: {name} holds NaN or infinity; expected finite weights. The file is "
                "damaged: fetch it again."
            )
        return array


def open_gguf(path: str | os.PathLike) -> File:
    """Opens a GGUF file and reads its metadata.

    Raises:
      FileNotFoundError, ValueError: for the reasons of `import_gguf`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} {'is a directory' if path.exists() else 'does not exist'}; expected a GGUF "
            "file. Check the path."
        )
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(4)
    if start != b"GGUF":
        raise ValueError(
            f"{path} ({size} bytes) is no GGUF file: it begins with {start!r}; expected b'GGUF'. "
            "Give a .gguf file; a Hugging Face directory needs no import."
        )
    package = library()
    try:
        reader = package.GGUFReader(path)
        fields = {key: _contents(field) for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        if "GGMLQuantizationType" in str(error):
            raise ValueError(
                f"{path} has a tensor of an unknown quantisation ({error}); expected one that the "
                "package gguf knows. Install a newer one, pip install -U gguf, or take another "
                "quantisation of the model."
            ) from error
        raise ValueError(
            f"{path} ({size} bytes) is cut short or damaged: its header and tensors do not fit in "
            f"({error}). Fetch it again, and compare its size or checksum with the source's."
        ) from error
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path}: general.architecture is {architecture!r}; supported are "
            f"{', '.join(ARCHITECTURES)}. docs/adding_a_family.md says how to add a family."
        )
    if fields.get("split.count", 0) > 1:
        raise ValueError(
            f"{path} is one of {fields['split.count']} files of a split model; expected a whole "
            "one. Merge them first: llama-gguf-split --merge."
        )
    return File(path, fields, {tensor.name: tensor for tensor in reader.tensors})


def name_of(path: str, layer: int | None) -> str:
    """Returns the file's name of a parameter's tensor, in a layer if it has layers."""
    return TENSORS[path].format(layer)


def library() -> Any:
    """Returns the package `gguf`; raises ValueError if it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The package gguf is not installed ({error}); expected it, to read a GGUF file. "
            "pip install 'nspo_jax[gguf]', or pip install gguf."
        ) from error


def decimal(value: float) -> float:
    """Returns the shortest decimal of a float32, such as 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _contents(field: Any) -> Any:
    value = field.contents()
    return value.item() if isinstance(value, np.generic) else value
