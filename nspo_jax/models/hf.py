"""Llama checkpoints in Hugging Face's layout (config.json + safetensors), read and written.

Torch is not needed: tensors go between safetensors files and numpy one at a time.
"""

from collections.abc import Mapping
import fnmatch
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from nspo_jax.models import config as config_lib
from nspo_jax.models import transformer

# Our path -> the tensor's name in the file ({} is the layer). Kernels are [in, out] here and
# [out, in] there.
_TENSORS = {
    "embed/embedding": "model.embed_tokens.weight",
    "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
    "layers/attention/q/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attention/k/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attention/v/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attention/o/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down/kernel": "model.layers.{}.mlp.down_proj.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}
# Old checkpoints store the rotary frequencies, which follow from the config.
_DERIVED = "*.rotary_emb.inv_freq"
_DTYPES = ("F32", "BF16", "F16")
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What a saved model may consist of: save_model replaces a directory only if it holds nothing else.
_MODEL_FILES = (
    _CONFIG, _GENERATION, "model*.safetensors", _INDEX, "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
)  # fmt: skip


def load_model(
    directory: str | os.PathLike, dtype: Any = jnp.float32
) -> tuple[config_lib.ModelConfig, transformer.Params]:
    """Reads a Llama checkpoint.

    Args:
      directory: holds config.json and either model.safetensors or model.safetensors.index.json
        with its shards, in float32, bfloat16 or float16.
      dtype: dtype of the parameters in memory: float32 for anything that will be trained, bfloat16
        to hold a frozen model in half the space. The compute dtype is a field of the config.

    Returns:
      The config (computing in float32) and the parameters, laid out as in `transformer`.

    Raises:
      FileNotFoundError: the directory or one of its files is missing.
      ValueError: a file is damaged, the config is not supported, or tensors are missing, extra or
        of another shape or dtype than the config says (all of them listed in one message).
    """
    directory = pathlib.Path(directory)
    config = config_lib.ModelConfig.from_hf(_read_json(directory / _CONFIG))
    abstract = traverse_util.flatten_dict(transformer.abstract_params(config), sep="/")
    expected = {}  # tensor name -> (path, layer or None, shape in the file)
    for path, leaf in abstract.items():
        for layer, name in _names(path, config):
            shape = leaf.shape if layer is None else leaf.shape[1:]
            expected[name] = (path, layer, shape[::-1] if _transposed(path) else shape)

    files = {path: _open(path) for path in _weight_files(directory)}
    where = {name: file for file in files.values() for name in file.keys()}
    _check_tensors(directory, expected, where)
    params = {}
    for path, leaf in abstract.items():
        stacked = np.empty(leaf.shape, dtype)
        for layer, name in _names(path, config):
            tensor = where[name].get_tensor(name)
            stacked[... if layer is None else layer] = tensor.T if _transposed(path) else tensor
        params[path] = jnp.asarray(stacked)
    return config, traverse_util.unflatten_dict(params, sep="/")


def save_model(
    directory: str | os.PathLike,
    config: config_lib.ModelConfig,
    params: transformer.Params,
    tokenizer: Any = None,
    generation_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and model.safetensors (float32) for `transformers` and `load_model`.

    Everything is written to a temporary directory beside the target, which then takes the target's
    name, so a reader never meets a half-written model. An existing model is first renamed to
    `<name>.previous-...` and removed last; a process killed between the two renames leaves both
    the old and the new one complete, beside the target.

    Args:
      directory: where the model goes: new, empty, or a model to replace.
      config: the model's config; its compute dtype is not stored.
      params: parameters laid out as in `transformer`.
      tokenizer: None, or a transformers tokenizer to save along. Its special token ids go into
        config.json; without one they are null.
      generation_config: None, or the content of generation_config.json.

    Raises:
      FileExistsError: the directory holds files that are no part of a model.
      ValueError: the parameters do not have the shapes that the config says.
    """
    target = pathlib.Path(os.path.abspath(directory))
    flat = traverse_util.flatten_dict(params, sep="/")
    _check_params(config, flat)
    _check_target(target)
    tensors = {}
    for path, value in flat.items():
        value = np.asarray(value).astype(np.float32)
        for layer, name in _names(path, config):
            tensor = value if layer is None else value[layer]
            tensors[name] = np.ascontiguousarray(tensor.T if _transposed(path) else tensor)

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        fields = config.to_hf()
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                fields[name] = getattr(tokenizer, name)
        _write_json(partial / _CONFIG, fields)
        if generation_config is not None:
            _write_json(partial / _GENERATION, dict(generation_config))
        safetensors.numpy.save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
        partial.chmod(0o755)  # mkdtemp makes it private
        _swap(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already unless something failed


def fingerprint(params: transformer.Params) -> str:
    """16 hex digits that identify parameters: sha256 of their paths, shapes, dtypes and bytes.

    Runs on the host. Saving a float32 model and loading it again keeps its fingerprint.
    """
    digest = hashlib.sha256()
    for path, value in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        array = np.asarray(jax.device_get(value))
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------
# Names, shapes and checks.
# ------------------------------------------------------------------------------------------------


def _names(path, config):
    """(layer or None, tensor name in the file) for every tensor that makes up one parameter."""
    if not path.startswith("layers/"):
        return [(None, _TENSORS[path])]
    return [(layer, _TENSORS[path].format(layer)) for layer in range(config.num_layers)]


def _transposed(path):
    return path.endswith("/kernel")


def _check_tensors(directory, expected, where):
    """Lists every tensor that is missing, extra, misshaped or of an unsupported dtype."""
    problems = [f"missing {name} {list(expected[name][2])}" for name in expected.keys() - where]
    for name, file in where.items():
        if fnmatch.fnmatch(name, _DERIVED):
            continue
        view = file.get_slice(name)
        shape = tuple(view.get_shape())
        if name not in expected:
            problems.append(f"extra {name} {list(shape)}")
        elif shape != expected[name][2]:
            problems.append(f"misshaped {name} {list(shape)}, expected {list(expected[name][2])}")
        elif view.get_dtype() not in _DTYPES:
            problems.append(f"dtype {view.get_dtype()} of {name}, expected {' or '.join(_DTYPES)}")
    if problems:
        raise ValueError(
            f"The tensors in {directory} are not those that its {_CONFIG} describes: "
            f"{'; '.join(sorted(problems))}. Use the config.json that belongs to these weights "
            "(tie_word_embeddings says whether lm_head.weight exists)."
        )


def _check_params(config, flat):
    abstract = traverse_util.flatten_dict(transformer.abstract_params(config), sep="/")
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


def _weight_files(directory):
    if (directory / _INDEX).exists():
        index = _read_json(directory / _INDEX)
        if not isinstance(index.get("weight_map"), dict):
            raise ValueError(
                f"{directory / _INDEX} has no 'weight_map' from tensor name to shard file: copy it "
                "again from the source of the checkpoint."
            )
        return [directory / name for name in sorted(set(index["weight_map"].values()))]
    return [directory / _WEIGHTS]


def _open(path):
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Expected {_WEIGHTS}, or {_INDEX} with all shards it names; "
            "fetch the missing file (PyTorch .bin weights must be converted to safetensors first)."
        )
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}. It "
            "was probably cut short while being copied; fetch it again."
        ) from error


def _read_json(path):
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Expected a directory in Hugging Face's layout, with {_CONFIG} "
            f"and {_WEIGHTS} (or {_INDEX} and its shards); check the path or download the model."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_target(target):
    if not target.exists():
        return
    others = [
        entry.name
        for entry in sorted(target.iterdir())
        if entry.is_dir() or not any(fnmatch.fnmatch(entry.name, p) for p in _MODEL_FILES)
    ]
    if others:
        raise FileExistsError(
            f"{target} holds {', '.join(others)}, which saving a model there would remove: choose "
            "a new directory for the model."
        )


def _swap(partial, target):
    """Gives `partial` the name of `target`, removing what was there only afterwards."""
    if not target.exists():
        partial.rename(target)
        return
    previous = pathlib.Path(tempfile.mkdtemp(prefix=f"{target.name}.previous-", dir=target.parent))
    target.rename(previous)  # over the empty directory just made
    partial.rename(target)
    shutil.rmtree(previous)
