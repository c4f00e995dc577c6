"""The reading of checkpoints in Hugging Face's layout (config.json + safetensors), of any family.

Torch is not needed. Tensors are read one at a time, in blocks, and only the part that a local
device holds, so the host never needs more than its own shards and one tensor.
"""

from collections.abc import Callable, Mapping
import dataclasses
import fnmatch
import functools
import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from nspo_jax import distributed, model_files, trees
from nspo_jax import progress as progress_lib
from nspo_jax.models import architecture, families, hf_config, peft_adapter, transformer

CONFIG, GENERATION = model_files.CONFIG, "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# The names of a delta's parts, a base model and a policy's difference from it; see `delta`.
DELTA, DELTA_WEIGHTS, BASE = "delta.json", "delta.safetensors", "base"
DELTA_FORMAT = 1
# Old checkpoints store the rotary frequencies, which follow from the config.
_DERIVED = "*.rotary_emb.inv_freq"
_DTYPES = {"F32": np.float32, "BF16": jnp.bfloat16, "F16": np.float16}
_BLOCK_BYTES = 2**21  # so much of a tensor is read at once
# Stacks up to this size are assembled on the host, larger ones layer by layer on the device, where
# each shape costs a small compilation.
_STACK_BYTES = 2**25

Index = tuple[slice, ...]
Shardings = Callable[[transformer.Params], transformer.Params]


def load_model(
    directory: str | os.PathLike,
    dtype: Any = jnp.float32,
    shardings: Shardings | None = None,
) -> tuple[architecture.ModelConfig, transformer.Params]:
    """Reads a checkpoint of any supported family.

    Args:
      directory: a directory with config.json and either model.safetensors or
        model.safetensors.index.json and its shards, in float32, bfloat16 or float16; or a delta of
        `export_delta`, or a LoRA adapter of PEFT: see `model_files.adapter_base`.
      dtype: dtype of the parameters in memory, float32 for anything that will be trained, bfloat16
        to hold a frozen model in half the space. The compute dtype is a field of the config.
      shardings: makes a tree of shardings of the abstract parameter tree, for example
        `functools.partial(sharding.shardings, mesh)`; None puts all on the default device.

    Returns:
      The config (computing in float32) and the parameters, laid out as in `transformer`.

    Raises:
      FileNotFoundError: the directory or one of its files is missing.
      ValueError: a file is damaged, the config is not supported, the tokenizer has ids without a
        row in the embedding, or tensors are missing, extra or of another shape or dtype than the
        config says (all of them listed in one message).
    """
    directory = pathlib.Path(directory)
    model_config = load_config(directory)
    tensors = Tensors(directory)
    check_tensors(model_config, tensors)
    abstract = transformer.abstract_params(model_config)
    placed = default_shardings(abstract) if shardings is None else shardings(abstract)
    placed = trees.flatten(placed)
    params = {
        path: load_parameter(model_config, tensors, path, leaf.shape, np.dtype(dtype), placed[path])
        for path, leaf in trees.flatten(abstract).items()
    }
    return model_config, trees.unflatten(params)


def default_shardings(abstract: transformer.Params) -> transformer.Params:
    """Puts every parameter on the default device."""
    device = jax.sharding.SingleDeviceSharding(jnp.zeros(()).devices().pop())
    return jax.tree.map(lambda leaf: device, abstract)


def load_config(directory: str | os.PathLike) -> architecture.ModelConfig:
    """Reads a checkpoint's config from its config.json and its tokenizer, without its weights.

    Raises:
      FileNotFoundError: the directory or its config.json is missing.
      ValueError: for the reasons of `load_model` that concern the config or the tokenizer.
    """
    directory = model_files.check_directory(directory)
    home = model_files.config_directory(directory)
    model_config = hf_config.read_config(model_files.read_json(home / CONFIG))
    absent = model_files.absent_ids(directory, model_config.vocab_size)
    return dataclasses.replace(model_config, absent_ids=absent)


def stored_as(directory: str | os.PathLike) -> str:
    """Names a checkpoint's dtypes, such as "BF16", "BF16+F32" or "BF16 + F32 delta"."""
    directory = pathlib.Path(directory)
    tensors = Tensors(directory)
    dtypes = "+".join(sorted({tensors.dtype(name) for name in tensors.names()}))
    if (directory / model_files.ADAPTER).exists():
        return f"{dtypes} + adapter"
    return f"{dtypes} + F32 delta" if (directory / DELTA).exists() else dtypes


def fingerprint(params: transformer.Params) -> str:
    """Identifies parameters by 16 hex digits: sha256 of their paths, shapes, dtypes and bytes.

    It is computed on the host, and on every host if there are several. Saving a float32 model and
    loading it again keeps its fingerprint.
    """
    digest = hashlib.sha256()
    for path, value in sorted(trees.flatten(params).items()):
        array = np.asarray(distributed.fetch(value))
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:16]


def stored_fingerprint(
    directory: str | os.PathLike, dtype: Any = jnp.float32, progress: bool = False
) -> str:
    """Computes the `fingerprint` of `load_model(directory, dtype)`, a tensor at a time.

    Raises:
      FileNotFoundError, ValueError: for the reasons of `load_model`.
    """
    model_config, tensors = load_config(directory), Tensors(pathlib.Path(directory))
    check_tensors(model_config, tensors)
    digest = hashlib.sha256()
    abstract = trees.flatten(transformer.abstract_params(model_config))
    for path, leaf in progress_lib.Bar(
        sorted(abstract.items()), desc="fingerprint", unit="parameter",
        disable=not (progress and distributed.is_primary()),
        leave=False,
    ):  # fmt: skip
        digest.update(f"{path} {leaf.shape} {np.dtype(dtype)}\n".encode())
        for name in tensor_layers(model_config, path):
            array = tensors.read(name, dtype=dtype, transpose=is_transposed(path))
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:16]


class Tensors:
    """The tensors of a checkpoint's directory, by Hugging Face's name, read slice by slice.

    Raises:
      FileNotFoundError: a file of weights is missing.
      ValueError: one is damaged.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        # the tensors as their files have them; a delta's and an adapter's are its base's
        self.stored = self
        # what is added to them: name -> a part of it, in float32
        self._change: Mapping[str, Callable[[Index], np.ndarray]] = {}
        if (base := model_files.adapter_base(directory)) is not None:
            self.stored = _open_base(directory, base)
            self._files = self.stored._files
            kernels = _kernels(hf_config.read_config(model_files.read_json(base / CONFIG)))
            weights = open_file(directory / model_files.ADAPTER_WEIGHTS)
            self._change = peft_adapter.open_change(directory, weights, kernels)
            return
        if (directory / DELTA).exists():
            document = model_files.read_json(directory / DELTA)
            if document.get("format") != DELTA_FORMAT:
                raise ValueError(
                    f"{directory / DELTA} has format {document.get('format')!r}, expected "
                    f"{DELTA_FORMAT}: it was written by another version."
                )
            delta = open_file(directory / DELTA_WEIGHTS)
            self._change = {
                name: functools.partial(_read_block, delta, name) for name in delta.keys()
            }
            self.stored = Tensors(directory / BASE)
            self._files = self.stored._files
            return
        files = [open_file(path) for path in _weight_files(directory)]
        self._files = {name: file for file in files for name in file.keys()}

    def names(self) -> list[str]:
        """Returns all names, in no particular order."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape in the file."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Returns a tensor's dtype in safetensors' spelling, such as "BF16"."""
        return self._files[name].get_slice(name).get_dtype()

    def read(
        self, name: str, index: Index = (), *, dtype: Any = np.float32, transpose: bool = False
    ) -> np.ndarray:
        """Reads and converts a part of a tensor; () is all of it. `transpose` gives [in, out]."""
        shape = self.shape(name)
        bounds = [part.indices(size) for part, size in zip(index, shape, strict=False)]
        bounds += [(0, size, 1) for size in shape[len(bounds) :]]
        out = np.empty(
            [stop - start for start, stop, _ in bounds], dtype, "F" if transpose else "C"
        )
        if not out.size:
            return out.T if transpose else out
        rows = max(1, _BLOCK_BYTES // (4 * (out.size // out.shape[0])))
        (first, last, _), rest = bounds[0], tuple(slice(a, b) for a, b, _ in bounds[1:])
        for start in range(first, last, rows):
            block = (slice(start, min(start + rows, last)), *rest)
            piece = self._files[name].get_slice(name)[block]
            if name in self._change:
                piece = piece.astype(np.float32) + self._change[name](block)
            out[start - first : start - first + rows] = piece
        return out.T if transpose else out


def is_sum(directory: str | os.PathLike) -> bool:
    """Tells whether a directory is a delta or an adapter, whose weights are its base's in part."""
    return any((pathlib.Path(directory) / name).exists() for name in (DELTA, model_files.ADAPTER))


def _open_base(directory: pathlib.Path, base: pathlib.Path) -> Tensors:
    """Opens the weights of an adapter's base, which must be whole."""
    if (base / DELTA).exists():
        raise ValueError(
            f"The base {base} of the adapter {directory} is a delta: make a plain model of it, "
            f"python -m scripts.export_hf --policy={base} --output=PLAIN, and name PLAIN."
        )
    return Tensors(base)


def _kernels(model_config: architecture.ModelConfig) -> dict[str, tuple[int, ...]]:
    """Lists a model's linear maps: tensor -> shape [out, in]."""
    expected = expected_tensors(model_config).items()
    return {name: shape for name, (path, _, shape) in expected if is_transposed(path)}


def _read_block(file: Any, name: str, block: Index) -> np.ndarray:
    return file.get_slice(name)[block]


def tensor_layers(model_config: architecture.ModelConfig, path: str) -> list[str]:
    """Names the tensors of one parameter, one a layer if it has layers."""
    name = families.FAMILIES[model_config.family].tensor(path)
    if not trees.is_stacked(path):
        return [name]
    return [name.format(layer) for layer in range(model_config.num_layers)]


def is_transposed(path: str) -> bool:
    """Tells whether a parameter is a kernel, which is [in, out] here and [out, in] in the file."""
    return path.endswith("/kernel")


def expected_tensors(
    model_config: architecture.ModelConfig,
) -> dict[str, tuple[str, int | None, tuple]]:
    """Lists a model's tensors in transformers' order: name -> (path, layer or None, shape)."""
    found, order = [], list(families.TENSORS)
    abstract = trees.flatten(transformer.abstract_params(model_config))
    for place, path in enumerate(sorted(abstract, key=order.index)):
        leaf, names = abstract[path], tensor_layers(model_config, path)
        stacked = trees.is_stacked(path)
        shape = leaf.shape[1:] if stacked else leaf.shape
        shape = shape[::-1] if is_transposed(path) else shape
        block = 0 if path.startswith("embed/") else 1 if stacked else 2
        for layer, name in enumerate(names):
            found.append((block, layer, place, name, (path, layer if stacked else None, shape)))
    return {name: entry for *_, name, entry in sorted(found, key=lambda row: row[:3])}


def check_tensors(model_config: architecture.ModelConfig, tensors: Tensors) -> None:
    """Raises ValueError listing every tensor that is missing, extra, misshaped or oddly typed.

    A tied model may also store its head if it equals the embedding; it is not read.
    """
    expected, names = expected_tensors(model_config), tensors.names()
    problems = [f"missing {name} {list(expected[name][2])}" for name in expected.keys() - names]
    tied_head = families.TENSORS["head/kernel"] if model_config.tie_embeddings else None
    for name in names:
        if fnmatch.fnmatch(name, _DERIVED):
            continue
        shape = tensors.shape(name)
        embedding = families.TENSORS["embed/embedding"]
        if name == tied_head and shape == expected[embedding][2] and embedding in names:
            if _same(tensors.stored, name, embedding):
                continue
        if name not in expected:
            problems.append(f"extra {name} {list(shape)}")
        elif shape != expected[name][2]:
            problems.append(f"misshaped {name} {list(shape)}, expected {list(expected[name][2])}")
        elif tensors.dtype(name) not in _DTYPES:
            problems.append(f"dtype {tensors.dtype(name)} of {name}, expected {', '.join(_DTYPES)}")
    if problems:
        raise ValueError(
            f"The tensors in {tensors.directory} are not those that its {CONFIG} describes: "
            f"{'; '.join(sorted(problems))}. Use the config.json that belongs to these weights "
            "(tie_word_embeddings says whether lm_head.weight exists)."
        )


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)


def load_parameter(
    model_config: architecture.ModelConfig,
    tensors: Tensors,
    path: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    layer: int | None = None,
) -> jax.Array:
    """Reads one parameter into its sharding, or one layer of a stack into its part of it."""
    names, transpose = tensor_layers(model_config, path), is_transposed(path)

    def read(name: str, index: Index) -> np.ndarray:
        index = index[::-1] if transpose else index
        return tensors.read(name, index, dtype=dtype, transpose=transpose)

    def read_layers(index: Index) -> np.ndarray:
        return np.stack([read(name, index[1:]) for name in names[index[0]]])

    if not trees.is_stacked(path):
        return _make_array(shape, sharding, lambda index: read(names[0], index))
    layer_sharding = sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
        layer_sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
    if layer is not None:
        return _make_array(shape[1:], layer_sharding, lambda index: read(names[layer], index))
    if int(np.prod(shape)) * dtype.itemsize <= _STACK_BYTES:
        return _make_array(shape, sharding, read_layers)
    stack = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    for place, name in enumerate(names):
        array = _make_array(shape[1:], layer_sharding, lambda index, name=name: read(name, index))
        # without waiting, the host would hold a queue of layers instead of one
        stack = jax.block_until_ready(_set_layer(stack, array, jnp.int32(place)))
    return stack


def _make_array(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """Makes an array of the parts that `read` gives, each read once for all its devices."""
    parts: dict[tuple, np.ndarray] = {}

    def part(index: Index) -> np.ndarray:
        key = tuple((s.start, s.stop) for s in index)
        if key not in parts:
            parts[key] = read(index)
        return parts[key]

    return jax.make_array_from_callback(shape, sharding, part)  # pyright: ignore[reportArgumentType]  # never None


def _same(tensors: Tensors, name: str, other: str) -> bool:
    """Tells whether two tensors are equal, a block at a time."""
    rows, *rest = tensors.shape(name)
    step = max(1, _BLOCK_BYTES // (4 * int(np.prod(rest))))
    blocks = [(slice(start, start + step),) for start in range(0, rows, step)]
    return tensors.shape(name) == tensors.shape(other) and all(
        np.array_equal(tensors.read(name, block), tensors.read(other, block)) for block in blocks
    )


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    # transformers also prefers the single file if both are there
    if (directory / INDEX).exists() and not (directory / WEIGHTS).exists():
        index: Mapping[str, Any] = model_files.read_json(directory / INDEX)
        if not isinstance(index.get("weight_map"), dict):
            raise ValueError(
                f"{directory / INDEX} has no 'weight_map' from tensor name to shard file: copy it "
                "again from the source of the checkpoint."
            )
        return [directory / name for name in sorted(set(index["weight_map"].values()))]
    return [directory / WEIGHTS]


def open_file(path: pathlib.Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Expected {WEIGHTS}, or {INDEX} with all shards it names, or "
            f"an adapter's {model_files.ADAPTER_WEIGHTS}; "
            "fetch the missing file (PyTorch .bin weights must be converted to safetensors first)."
        )
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}. It "
            "was probably cut short while being copied; fetch it again."
        ) from error
