"""The conversion of GGUF files, the format of llama.cpp and its kin, to Hugging Face's layout.

    report = import_gguf("model.gguf", "models/model")

Quantised weights are multiplied out, so the result is a plain float32 or bfloat16 model whose
weights are the file's, not those of the model that was quantised. It needs the package `gguf`.
`gguf_file` opens a file, `gguf_config` has the config, `gguf_tokenizer` the tokenizer. This undoes
its source, llama.cpp's convert_hf_to_gguf.py.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
import shutil

import numpy as np

from nspo_jax import files
from nspo_jax.models import architecture, gguf_config, gguf_tokenizer, hf, hf_config, hf_export
from nspo_jax.models.gguf_file import ROPE_FACTORS, File, library, name_of, open_gguf

_ROOM = 2**26  # the tokenizer and the rest may take so many bytes on the disk


@dataclasses.dataclass(frozen=True)
class Report:
    """The contents of an imported model.

    Attributes:
      model_config: its shape.
      quantisations: quantisation -> the number of its tensors, the most frequent first.
      tokens: the tokenizer's number of tokens.
      chat: True if it has a chat template.
      licence: general.license of the file; "" if it has none.
      left_out: names of further chat templates, which are not written.
      size: bytes of the written weights.
    """

    model_config: architecture.ModelConfig
    quantisations: Mapping[str, int]
    tokens: int
    chat: bool
    licence: str
    left_out: tuple[str, ...]
    size: int


def import_gguf(
    path: str | os.PathLike,
    directory: str | os.PathLike,
    *,
    dtype: str = "float32",
    shard_bytes: int = hf_export.SHARD_BYTES,
) -> Report:
    """Converts a GGUF file to a directory in Hugging Face's layout, whole or not at all.

    Args:
      path: the file.
      directory: the directory to write; it must not exist.
      dtype: the written weights' dtype, "float32", which holds the file's weights exactly, or
        "bfloat16".
      shard_bytes: the largest size of a file of weights, unless one tensor is larger.

    Raises:
      FileNotFoundError: there is no such file.
      FileExistsError: the directory is there.
      OSError: there is no room for it.
      ValueError: the file is no GGUF, cut or damaged, or of an architecture, quantisation,
        tokenizer or setting that is not supported; or the package `gguf` is not installed.
    """
    target = pathlib.Path(directory)
    if target.exists() or target.is_symlink():
        raise FileExistsError(
            f"The output {target} exists; expected a new directory, for nothing is overwritten. "
            "Name another, or move this one away."
        )
    hf_export.check_target(target, dtype)
    file = open_gguf(path)
    model_config = gguf_config.read_config(file)
    check_tensors(file, model_config)
    tokenizer = gguf_tokenizer.build_tokenizer(
        file.fields, model_config.vocab_size, model_config.max_length
    )
    expected = hf.expected_tensors(model_config)
    shapes = {name: shape for name, (*_, shape) in expected.items()}
    weights = sum(int(np.prod(shape)) for shape in shapes.values())
    size = weights * np.dtype(hf_export.DTYPES[dtype]).itemsize
    _check_room(target, size + _ROOM)
    ids, generation = gguf_config.special_ids(file)

    def read(name: str) -> np.ndarray:
        parameter, layer, _ = expected[name]
        return read_tensor(file, model_config, parameter, layer)

    def write(folder: pathlib.Path) -> None:
        tokenizer.save_pretrained(folder)
        fields = hf_config.write_config(model_config) | {"torch_dtype": dtype} | ids
        hf_export.write_json(folder / hf.CONFIG, fields)
        hf_export.write_json(folder / hf.GENERATION, generation)
        hf_export.write_weights(folder, shapes, read, dtype, shard_bytes)
        hf_export.open_checked(folder)  # it raises unless the result can be loaded

    files.write_directory(target, write)
    return Report(
        model_config=model_config,
        quantisations=file.quantisations,
        tokens=len(tokenizer),
        chat=bool(tokenizer.chat_template),
        licence=str(file.fields.get("general.license", "")),
        left_out=tuple(
            key.removeprefix("tokenizer.chat_template.")
            for key in file.fields
            if key.startswith("tokenizer.chat_template.")
        ),
        size=size,
    )


def check_tensors(file: File, model_config: architecture.ModelConfig) -> None:
    """Raises ValueError for tensors that are missing, extra, misshaped or cannot be read."""
    expected = {
        name_of(path, layer): shape
        for path, layer, shape in hf.expected_tensors(model_config).values()
    }
    problems = [f"missing {name} {list(expected[name])}" for name in expected.keys() - file.tensors]
    for name in file.tensors:
        if name == ROPE_FACTORS and file.architecture == "llama":
            continue
        if name not in expected:
            problems.append(f"extra {name} {list(file.shape(name))}")
        elif file.shape(name) != expected[name]:
            problems.append(
                f"misshaped {name} {list(file.shape(name))}, expected {list(expected[name])}"
            )
    if problems:
        shown = "; ".join(sorted(problems)[:8])
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"The tensors in {file.path} are not those that its metadata describe: {shown}{more}. "
            f"Supported are plain {model_config.family} models without experts, adapters or other "
            "biases: take such a one, or fetch the file again."
        )
    quants, sizes = library().quants, library().GGML_QUANT_SIZES
    for kind in {tensor.tensor_type for tensor in file.tensors.values()}:
        try:  # a block of zeros shows before the work whether the kind can be read
            quants.dequantize(np.zeros((1, sizes[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            name = next(n for n, tensor in file.tensors.items() if tensor.tensor_type == kind)
            raise ValueError(
                f"{file.path}: {name} is quantised as {kind.name}; expected F32, F16, BF16 or a "
                "quantisation that the package gguf can multiply out, such as Q8_0, Q4_1 or Q4_K. "
                "Install a newer one, pip install -U gguf, or take another quantisation."
            ) from error


def read_tensor(
    file: File, model_config: architecture.ModelConfig, path: str, layer: int | None
) -> np.ndarray:
    """Reads a parameter as transformers stores it, float32; kernels are [out, in].

    llama.cpp reorders Llama's queries and keys, because it rotates neighbouring numbers and
    transformers the halves of a head, and it adds one to Gemma's norms. Both are undone.
    """
    array = file.read(name_of(path, layer))
    if file.architecture == "llama" and path.endswith(("attention/q/kernel", "attention/k/kernel")):
        pairs = array.reshape(-1, model_config.head_dim // 2, 2, array.shape[-1])
        array = pairs.swapaxes(1, 2).reshape(array.shape)
    if model_config.norm_offset and path.endswith("norm/scale"):
        array = array - 1
    return array


def _check_room(target: pathlib.Path, needed: int) -> None:
    """Raises OSError unless the disk has so many bytes left."""
    there = next(part for part in target.absolute().parents if part.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{there} has {free / 1e9:.2f} GB free, and the model takes {needed / 1e9:.2f} GB; "
            "expected room for it. Free some, choose another place, or --dtype=bfloat16, half as "
            "large."
        )
