"""The writing of checkpoints in Hugging Face's layout: whole models, in other dtypes and shards.

Everything is written to a temporary directory beside the target, which then takes the target's
name, so a reader never meets a half-written model. Tensors are gathered a shard at a time.
"""

from collections.abc import Callable, Iterable
import dataclasses
import fnmatch
import json
import os
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from nspo_jax import distributed, files, model_files, trees
from nspo_jax import progress as progress_lib
from nspo_jax.models import architecture, hf, hf_config, transformer

DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16}
SHARD_BYTES = 5 * 10**9  # transformers cuts shards at this size
Edit = Callable[[str, int | None, np.ndarray], np.ndarray]
_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template*",
)  # fmt: skip
_SETTINGS = (hf.GENERATION, model_files.RENDERING)
_COMPANIONS = (*_SETTINGS, *_TOKENIZER)
# A saved model consists of such files, and a directory is replaced only if it holds nothing else.
_MODEL_FILES = (
    hf.CONFIG, "model*.safetensors", hf.INDEX, hf.DELTA, hf.DELTA_WEIGHTS, hf.BASE, *_COMPANIONS
)  # fmt: skip


def save_model(
    directory: str | os.PathLike,
    model_config: architecture.ModelConfig,
    params: transformer.Params,
    tokenizer: Any = None,
    *,
    like: str | os.PathLike | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model that transformers, vLLM, lm-eval and `load_model` read.

    An existing model is first renamed to `<name>.previous-...` and removed last; a process killed
    between the two renames leaves both the old and the new one complete, beside the target.

    All processes call it. They gather sharded parameters tensor by tensor, process 0 writes them,
    and the others wait for it in their own way.

    Args:
      directory: the directory to write, new, empty, or a model to replace.
      model_config: the model's config; its compute dtype and remat policy are not stored.
      params: parameters laid out as in `transformer`.
      tokenizer: None, or a transformers tokenizer to save along. Its special token ids go into
        config.json; without one they are null.
      like: None, or the directory of the model that this one was made from, whose tokenizer,
        generation config and every field of config.json are kept.
      dtype: the dtype of the weights in the files, "float32" or "bfloat16". Rounding a small update
        to bfloat16 takes it out of the null space; see `delta.export_delta`.
      shard_bytes: the largest size of a file of weights, unless one tensor is larger.

    Raises:
      FileExistsError: the directory holds files that are no part of a model.
      ValueError: the parameters do not have the shapes that the config says, both `tokenizer` and
        `like` are given, or `like` is of another architecture.
    """
    check_apart(directory, like)
    flat = trees.flatten(params)
    _check_params(model_config, flat)
    target = check_target(directory, dtype)
    if like is not None and tokenizer is not None:
        raise ValueError("like brings its tokenizer along: give tokenizer or like, not both.")
    expected = hf.expected_tensors(model_config)

    def read(name: str) -> np.ndarray:
        path, layer, _ = expected[name]
        value = flat[path] if layer is None else flat[path][layer]
        value = np.asarray(distributed.fetch(value))
        return value.T if hf.is_transposed(path) else value

    def write(folder: pathlib.Path) -> None:
        if like is not None:
            write_like(folder, pathlib.Path(like), model_config, dtype)
        else:
            fields = hf_config.write_config(model_config) | {"torch_dtype": dtype}
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
                names = ("bos_token_id", "eos_token_id", "pad_token_id")
                special = {name: getattr(tokenizer, name) for name in names}
                fields |= special
                write_json(folder / hf.GENERATION, special)
            write_json(folder / hf.CONFIG, fields)
        shapes = {name: shape for name, (*_, shape) in expected.items()}
        write_weights(folder, shapes, read, dtype, shard_bytes)

    if distributed.is_primary():
        files.write_directory(target, write)
    else:
        for name in expected:  # write_weights has the same order
            read(name)


def export_model(
    source: str | os.PathLike,
    directory: str | os.PathLike,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    edit: Edit | None = None,
) -> None:
    """Writes a saved model again, in another dtype or other shards, without loading it whole.

    Args:
      source: a directory that `load_model` reads, a delta or an adapter included.
      directory: the directory to write; see `save_model`, also for the errors.
      dtype: the dtype of the weights in the files.
      shard_bytes: the largest size of a file of weights.
      edit: None, or a function that changes values before the conversion to `dtype`. It takes a
        parameter's path, its layer (None outside the stack) and its float32 value, laid out as in
        `transformer` without the layer axis.
    """
    check_apart(directory, source)
    source, target = pathlib.Path(source), check_target(directory, dtype)
    model_config, tensors = open_checked(source)
    expected = hf.expected_tensors(model_config)
    shapes = {name: shape for name, (*_, shape) in expected.items()}

    def read(name: str) -> np.ndarray:
        path, layer, _ = expected[name]
        if edit is None:
            return tensors.read(name)
        transpose = hf.is_transposed(path)
        value = edit(path, layer, tensors.read(name, transpose=transpose))
        return value.T if transpose else value

    def write(folder: pathlib.Path) -> None:
        write_like(folder, source, model_config, dtype)
        write_weights(folder, shapes, read, dtype, shard_bytes)

    files.write_directory(target, write)


# ------------------------------------------------------------------------------------------------
# Weights and configs.
# ------------------------------------------------------------------------------------------------


def write_weights(
    folder: pathlib.Path,
    shapes: dict[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    dtype: str,
    shard_bytes: int,
) -> None:
    """Writes tensors in shards of at most `shard_bytes`, with an index if there are several."""
    sizes = {name: int(np.prod(s)) * np.dtype(DTYPES[dtype]).itemsize for name, s in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    progress = progress_lib.Bar(total=len(shapes), desc="save", unit="tensor", leave=False,
                         disable=len(shards) == 1)  # fmt: skip
    weight_map = {}
    with progress:
        for number, names in enumerate(shards, 1):
            file = hf.WEIGHTS
            if len(shards) > 1:
                file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = {}
            for name in names:
                tensors[name] = np.ascontiguousarray(read(name).astype(DTYPES[dtype]))
                progress.update()
            safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(folder / hf.INDEX, index)


def write_like(
    folder: pathlib.Path, like: pathlib.Path, model_config: architecture.ModelConfig, dtype: str
) -> None:
    """Writes the config of `like`, changed as little as needed, and copies its other files."""
    home = model_files.config_directory(like)
    fields = model_files.read_json(home / hf.CONFIG)
    theirs = hf_config.read_config(fields)
    ours = stored(model_config)
    if dataclasses.replace(theirs, head=ours.head) != ours:
        raise ValueError(
            f"The model is not of the architecture of {like} ({differences(ours, theirs)}): name "
            "the model that it was made from."
        )
    if theirs.head != ours.head:
        written = hf_config.write_config(ours)
        names = ("architectures", "num_labels", "id2label", "label2id")
        fields = {k: v for k, v in fields.items() if k not in names}
        fields |= {name: written[name] for name in names if name in written}
    keys = [name for name in ("dtype", "torch_dtype") if name in fields] or ["torch_dtype"]
    if all(fields.get(key) == dtype for key in keys) and theirs.head == ours.head:
        shutil.copyfile(home / hf.CONFIG, folder / hf.CONFIG)
    else:
        write_json(folder / hf.CONFIG, fields | dict.fromkeys(keys, dtype))
    tokenizer = _matching(model_files.tokenizer_directory(like), _TOKENIZER)
    for file in [*_matching(home, _SETTINGS), *tokenizer]:
        shutil.copyfile(file, folder / file.name)


def stored(model_config: architecture.ModelConfig) -> architecture.ModelConfig:
    """Returns the config as its file holds it, without compute dtype, remat and absent ids."""
    fresh = {field.name: field.default for field in dataclasses.fields(model_config)}
    names = ("compute_dtype", "remat", "absent_ids")
    return dataclasses.replace(model_config, **{name: fresh[name] for name in names})


def open_checked(directory: pathlib.Path) -> tuple[architecture.ModelConfig, hf.Tensors]:
    model_config = hf.load_config(directory)
    tensors = hf.Tensors(directory)
    hf.check_tensors(model_config, tensors)
    return model_config, tensors


def differences(a: architecture.ModelConfig, b: architecture.ModelConfig) -> str:
    names = [field.name for field in dataclasses.fields(a)]
    return "; ".join(
        f"{name} {getattr(a, name)!r} against {getattr(b, name)!r}"
        for name in names
        if getattr(a, name) != getattr(b, name)
    )


def _check_params(model_config: architecture.ModelConfig, flat: dict[str, Any]) -> None:
    abstract = trees.flatten(transformer.abstract_params(model_config))
    problems = [f"missing {path} {list(abstract[path].shape)}" for path in abstract.keys() - flat]
    for path, value in flat.items():
        if path not in abstract:
            problems.append(f"extra {path} {list(value.shape)}")
        elif value.shape != abstract[path].shape:
            shape = list(abstract[path].shape)
            problems.append(f"misshaped {path} {list(value.shape)}, expected {shape}")
    if problems:
        raise ValueError(
            f"The parameters are not those of the config: {'; '.join(sorted(problems))}. Save them "
            "with the config they were made with."
        )


# ------------------------------------------------------------------------------------------------
# Files.
# ------------------------------------------------------------------------------------------------


def _matching(folder: pathlib.Path, patterns: Iterable[str]) -> list[pathlib.Path]:
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)
    ]


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return _matching(folder, (hf.CONFIG, "model*.safetensors", hf.INDEX, *_COMPANIONS))


def link(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # the target is on another file system, or on one without links
        shutil.copyfile(source, target)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_apart(directory: str | os.PathLike, *inputs: str | os.PathLike | None) -> None:
    """Raises FileExistsError if writing a directory would destroy one that is read.

    That happens if the two are the same, by any name, or the input lies inside the output.
    """
    target = pathlib.Path(os.path.realpath(directory))
    for given in inputs:
        if given is None or str(given) == "":
            continue
        for read in (given, model_files.config_directory(given)):  # an adapter reads its base
            source = pathlib.Path(os.path.realpath(read))
            if source == target or target in source.parents:
                raise FileExistsError(
                    f"The output {directory} is or holds the input {read}, which writing there "
                    "would destroy: choose another directory for the output."
                )


def check_target(directory: str | os.PathLike, dtype: str = "float32") -> pathlib.Path:
    """Resolves a directory's name, if a model can be written there in that dtype.

    Raises:
      FileExistsError: something is there that is neither a model nor empty.
      ValueError: for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: give one of {', '.join(DTYPES)}.")
    # a link stays, and its target is replaced
    target = pathlib.Path(os.path.realpath(directory))
    if not target.exists():
        return target
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file: choose a directory for the model.")
    entries = sorted(target.iterdir())
    others = [
        entry.name
        for entry in entries
        if not any(fnmatch.fnmatch(entry.name, pattern) for pattern in _MODEL_FILES)
        or (entry.is_dir() and entry.name != hf.BASE)
    ]
    if not others and entries and not (target / hf.CONFIG).exists():
        others = [entry.name for entry in entries]  # they may be a tokenizer that is kept there
    if others:
        raise FileExistsError(
            f"{target} holds {', '.join(others)}, which saving a model there would remove: choose "
            "a new directory for the model."
        )
    return target
