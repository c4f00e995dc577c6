"""GGUF files, as llama.cpp and its kin use them, converted to Hugging Face's layout.

    report = import_gguf("model.gguf", "models/model")

Quantised weights are multiplied out, so the result is a plain float32 or bfloat16 model whose
weights are the file's, not those of the model that was quantised. Needs the package `gguf`.
`gguf_tokenizer` has the tokenizer. Sources: llama.cpp's convert_hf_to_gguf.py, which this undoes,
and its docs/gguf.md for the keys.
"""

import collections
from collections.abc import Mapping
import dataclasses
import importlib
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from nspo_jax import files
from nspo_jax.models import config as config_lib
from nspo_jax.models import families, gguf_tokenizer, hf, hf_config, hf_export

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
_ROPE_FACTORS = "rope_freqs.weight"
# Keys behind "ARCHITECTURE." that say what the model is, for every architecture.
_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
    "attention.key_length", "attention.value_length", "rope.freq_base", "rope.dimension_count",
    "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
}  # fmt: skip
_WINDOW = {"attention.sliding_window"}
_OWN_KEYS = {
    "gemma2": _WINDOW | {"attn_logit_softcapping", "final_logit_softcapping", "attention.scale"},
    "gemma3": _WINDOW | {"final_logit_softcapping", "attention.scale", "rope.freq_base_swa"},
}
# Keys that change nothing with this value (None: with any).
_OFF = {
    "rope.scaling.finetuned": None, "rope.scaling.original_context_length": None,
    "attention.causal": True, "expert_count": 0, "expert_used_count": 0,
    "attention.sliding_window_pattern": 6, "pooling_type": 0, "use_parallel_residual": False,
    "attention.sliding_window": 0,
}  # fmt: skip
# llama.cpp takes a Gemma of so many layers for the 27B, which scales queries in a way of its own.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
_ROOM = 2**26  # bytes that the tokenizer and the rest may take on the disk


@dataclasses.dataclass(frozen=True)
class File:
    """A GGUF file, open: its metadata read, its tensors on the disk.

    Attributes:
      path: of the file.
      fields: the metadata by key; numbers, strings and lists of them.
      tensors: by the file's name, as `gguf.ReaderTensor`.
    """

    path: pathlib.Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """general.architecture, one of `ARCHITECTURES`."""
        return self.fields["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key behind the architecture's name."""
        return self.fields.get(f"{self.architecture}.{key}", default)

    def require(self, key: str, kind: type = int) -> Any:
        """As `get`, of a positive number that must be there; raises ValueError."""
        value = self.get(key)
        if type(value) is not kind or not value > 0:
            raise ValueError(
                f"{self.path}: {self.architecture}.{key} is {value!r}; expected a positive "
                f"{'whole number' if kind is int else 'number'}. Fetch or convert the file again."
            )
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in numpy's order, [out, in] of a kernel."""
        return tuple(int(size) for size in self.tensors[name].shape[::-1])

    def read(self, name: str) -> np.ndarray:
        """A tensor, multiplied out to float32."""
        tensor = self.tensors[name]
        array = _library().quants.dequantize(tensor.data, tensor.tensor_type)
        array = array.astype(np.float32).reshape(self.shape(name))
        if not np.isfinite(array).all():
            raise ValueError(
                f"{self.path}: {name} holds NaN or infinity; expected finite weights. The file is "
                "damaged: fetch it again."
            )
        return array


@dataclasses.dataclass(frozen=True)
class Report:
    """What was imported.

    Attributes:
      config: of the model.
      quantisations: how many tensors the file holds in each, the most frequent first.
      tokens: of the tokenizer.
      chat: whether it has a chat template.
      licence: general.license of the file; "" where it does not say.
      left_out: names of further chat templates, which are not written.
      size: bytes of the written weights.
    """

    config: config_lib.ModelConfig
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
      directory: what to write; it must not exist.
      dtype: of the written weights: "float32", which holds the file's weights exactly, or
        "bfloat16".
      shard_bytes: a file of weights is at most that large, unless one tensor is larger.

    Raises:
      FileNotFoundError: there is no such file.
      FileExistsError: the directory is there.
      OSError: there is no room for it.
      ValueError: the file is no GGUF, cut or damaged, or of an architecture, quantisation, tokenizer
        or setting that is not supported; or the package `gguf` is not installed.
    """
    target = pathlib.Path(directory)
    if target.exists() or target.is_symlink():
        raise FileExistsError(
            f"The output {target} exists; expected a new directory, for nothing is overwritten. "
            "Name another, or move this one away."
        )
    hf_export.check_target(target, dtype)
    file = open_gguf(path)
    config = read_config(file)
    check_tensors(file, config)
    tokenizer = gguf_tokenizer.build_tokenizer(file.fields, config.vocab_size, config.max_length)
    expected = hf.expected_tensors(config)
    shapes = {name: shape for name, (*_, shape) in expected.items()}
    weights = sum(int(np.prod(shape)) for shape in shapes.values())
    size = weights * np.dtype(hf_export.DTYPES[dtype]).itemsize
    _check_room(target, size + _ROOM)
    ends = gguf_tokenizer.end_ids(file.fields)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "pad_token_id")}

    def read(name: str) -> np.ndarray:
        parameter, layer, _ = expected[name]
        return read_tensor(file, config, parameter, layer)

    def write(folder: pathlib.Path) -> None:
        tokenizer.save_pretrained(folder)
        special = ids | {"eos_token_id": ends[0] if ends else None}
        fields = hf_config.write_config(config) | {"torch_dtype": dtype} | special
        hf_export.write_json(folder / hf.CONFIG, fields)
        generation = ids | {"eos_token_id": ends if len(ends) > 1 else special["eos_token_id"]}
        known = {name: value for name, value in generation.items() if value is not None}
        hf_export.write_json(folder / hf.GENERATION, known)
        hf_export.write_weights(folder, shapes, read, dtype, shard_bytes)
        hf_export.open_checked(folder)  # what is handed over can be loaded

    files.write_directory(target, write)
    return Report(
        config=config,
        quantisations=dict(_kinds(file).most_common()),
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


def open_gguf(path: str | os.PathLike) -> File:
    """Opens a GGUF file and reads its metadata.

    Raises:
      FileNotFoundError, ValueError: as `import_gguf`.
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
    library = _library()
    try:
        reader = library.GGUFReader(path)
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
    return File(path, fields, {tensor.name: tensor for tensor in reader.tensors})


def read_config(file: File) -> config_lib.ModelConfig:
    """What the model is, from the file's metadata and its tensors' names and shapes.

    Raises:
      ValueError: a key is missing, unknown, or has a value that the decoder does not implement.
    """
    family = families.FAMILIES[ARCHITECTURES[file.architecture]]
    _check_keys(file)
    heads, hidden = file.require("attention.head_count"), file.require("embedding_length")
    head_dim = file.get("attention.key_length") or file.get("rope.dimension_count")
    head_dim = head_dim or hidden // heads
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if file.get(key) not in (None, head_dim):
            raise ValueError(
                f"{file.path}: {file.architecture}.{key} is {file.get(key)!r}; supported is the "
                f"width of a head, {head_dim}, for the decoder rotates all of it and has one width."
            )
    embedding = TENSORS["embed/embedding"]
    if embedding not in file.tensors:
        raise ValueError(
            f"{file.path} has no tensor {embedding}; expected a language model's weights. Parts of "
            "a split model are merged first: llama-gguf-split --merge."
        )
    rows = file.shape(embedding)[0]
    if file.get("vocab_size") not in (None, rows):
        raise ValueError(
            f"{file.path}: {file.architecture}.vocab_size is {file.get('vocab_size')} and the "
            f"embedding has {rows} rows; expected the same. Fetch or convert the file again."
        )
    config = config_lib.ModelConfig(
        **family.traits,
        **_gemma(file, head_dim),
        **_rope(file, family, head_dim),
        family=family.model_type,
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=file.require("feed_forward_length"),
        num_layers=file.require("block_count"),
        num_heads=heads,
        num_kv_heads=file.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=_decimal(file.require("attention.layer_norm_rms_epsilon", float)),
        tie_embeddings=TENSORS["head/kernel"] not in file.tensors,
        max_length=file.require("context_length"),
    )
    return hf_config.read_config(hf_config.write_config(config))  # it can be written, and says so


def check_tensors(file: File, config: config_lib.ModelConfig) -> None:
    """Raises ValueError for tensors that are missing, extra, misshaped or cannot be read."""
    expected = {
        _name(path, layer): shape for path, layer, shape in hf.expected_tensors(config).values()
    }
    problems = [f"missing {name} {list(expected[name])}" for name in expected.keys() - file.tensors]
    for name in file.tensors:
        if name == _ROPE_FACTORS and file.architecture == "llama":
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
            f"Supported are plain {config.family} models without experts, adapters or other biases."
        )
    quants, sizes = _library().quants, _library().GGML_QUANT_SIZES
    for kind in {tensor.tensor_type for tensor in file.tensors.values()}:
        try:  # a block of zeros: whether it can be read is known before the work
            quants.dequantize(np.zeros((1, sizes[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            name = next(n for n, tensor in file.tensors.items() if tensor.tensor_type == kind)
            raise ValueError(
                f"{file.path}: {name} is quantised as {kind.name}; expected F32, F16, BF16 or a "
                "quantisation that the package gguf can multiply out, such as Q8_0, Q4_1 or Q4_K. "
                "Install a newer one, pip install -U gguf, or take another quantisation."
            ) from error


def read_tensor(
    file: File, config: config_lib.ModelConfig, path: str, layer: int | None
) -> np.ndarray:
    """A parameter as transformers stores it, float32; kernels are [out, in].

    llama.cpp reorders Llama's queries and keys, for it rotates neighbouring numbers where
    transformers rotates the halves of a head, and adds one to Gemma's norms. Both are undone.
    """
    array = file.read(_name(path, layer))
    if file.architecture == "llama" and path.endswith(("attention/q/kernel", "attention/k/kernel")):
        pairs = array.reshape(-1, config.head_dim // 2, 2, array.shape[-1])
        array = pairs.swapaxes(1, 2).reshape(array.shape)
    if config.norm_offset and path.endswith("norm/scale"):
        array = array - 1
    return array


# ------------------------------------------------------------------------------------------------
# The parts of a config.
# ------------------------------------------------------------------------------------------------


def _check_keys(file: File) -> None:
    """Raises ValueError for a key that is not known and may change the output."""
    prefix = f"{file.architecture}."
    known = _KEYS | _OWN_KEYS.get(file.architecture, set())
    for full in file.fields:
        key, value = full.removeprefix(prefix), file.fields[full]
        if not full.startswith(prefix) or key in known:
            continue
        if key not in _OFF:
            raise ValueError(
                f"{file.path}: {full} is {value!r}: this key is not known here and may change the "
                f"output; expected a plain {file.architecture} model. The decoder needs what the "
                "key names: docs/adding_a_family.md."
            )
        if _OFF[key] is not None and value != _OFF[key]:
            raise ValueError(
                f"{file.path}: {full} is {value!r}; supported is {_OFF[key]!r} alone, for the "
                "decoder does not implement it. Take another model."
            )


def _gemma(file: File, head_dim: int) -> dict[str, Any]:
    """Scales, caps and windows of a Gemma, with llama.cpp's defaults."""
    if file.architecture not in _GEMMA_27B:
        return {}
    layers, hidden = file.require("block_count"), file.require("embedding_length")
    scale: float = head_dim
    if layers == _GEMMA_27B[file.architecture]:
        scale = hidden / file.require("attention.head_count")
    if file.get("attention.scale"):
        scale = round(float(_decimal(file.get("attention.scale"))) ** -2, 4)
    family = families.FAMILIES[ARCHITECTURES[file.architecture]]
    is_windowed = family.is_windowed or (lambda fields, layer: False)
    second = file.architecture == "gemma2"
    window = file.get("attention.sliding_window", 4096 if second else None)
    if type(window) is not int or window < 1:
        raise ValueError(
            f"{file.path}: {file.architecture}.attention.sliding_window is {window!r}; expected a "
            "positive whole number. Convert the model by a newer llama.cpp."
        )
    caps = {"logits_softcap": file.get("final_logit_softcapping", 30.0 if second else None)}
    if second:
        caps["attention_softcap"] = file.get("attn_logit_softcapping", 50.0)
    return {
        "query_scale": int(scale) if scale == int(scale) else scale,
        "windows": tuple(window if is_windowed({}, layer) else 0 for layer in range(layers)),
        **{name: value and _decimal(value) for name, value in caps.items()},
    }


def _rope(file: File, family: families.Family, head_dim: int) -> dict[str, Any]:
    """Rotary bases and scaling."""
    theta, local = family.rope_thetas
    theta = _decimal(file.get("rope.freq_base", theta))
    local = local and _decimal(file.get("rope.freq_base_swa", local))
    kind, factor = file.get("rope.scaling.type", "none"), file.get("rope.scaling.factor", 1.0)
    if file.get("rope.scale_linear"):  # the key of old files
        kind, factor = "linear", file.get("rope.scale_linear")
    if kind not in ("none", "linear"):
        raise ValueError(
            f"{file.path}: {file.architecture}.rope.scaling.type is {kind!r}; supported are 'none' "
            "and 'linear', and Llama 3.1's, which is stored as the tensor rope_freqs.weight. Take "
            "a model without it."
        )
    scaling = None
    if kind == "linear" and factor != 1.0:
        scaling = config_lib.RopeScaling("linear", _decimal(factor))
    if _ROPE_FACTORS in file.tensors and file.architecture == "llama":
        stretched = _llama3_scaling(file, head_dim, theta)
        if stretched and scaling:
            raise ValueError(
                f"{file.path} has {_ROPE_FACTORS} and {file.architecture}.rope.scaling.type "
                "'linear'; supported is one of them. Convert the original model again."
            )
        scaling = stretched or scaling
    return {"rope_theta": theta, "local_rope_theta": local, "rope_scaling": scaling}


def _llama3_scaling(file: File, head_dim: int, theta: float) -> config_lib.RopeScaling | None:
    """The settings of Llama 3.1's rotary scaling, recovered from the factors that they made.

    GGUF stores what every frequency is divided by, and Hugging Face the four numbers that it
    follows from. All published models have low and high factors of 1 and 4.
    """
    factors = file.read(_ROPE_FACTORS).reshape(-1).astype(np.float64)
    if (factors == 1).all():
        return None
    lengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        scaling = config_lib.RopeScaling("llama3", _decimal(factors.max()), 1.0, 4.0, original)
        smooth = np.clip((original / lengths - 1) / 3, 0, 1)
        made = 1 / ((1 - smooth) / scaling.factor + smooth)
        if factors.shape == made.shape and np.allclose(factors, made, rtol=1e-4):
            return scaling
    raise ValueError(
        f"{file.path}: {_ROPE_FACTORS} is {np.array2string(factors, threshold=8)}; expected the "
        "factors of Llama 3.1's rotary scaling with low_freq_factor 1 and high_freq_factor 4. "
        "Others are not supported: take another model."
    )


# ------------------------------------------------------------------------------------------------
# Small pieces.
# ------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The package gguf is not installed ({error}); expected it, to read a GGUF file. "
            "pip install 'nspo_jax[gguf]', or pip install gguf."
        ) from error


def _contents(field: Any) -> Any:
    value = field.contents()
    return value.item() if isinstance(value, np.generic) else value


def _decimal(value: float) -> float:
    """The shortest decimal of a float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _name(path: str, layer: int | None) -> str:
    return TENSORS[path].format(layer)


def _kinds(file: File) -> collections.Counter[str]:
    return collections.Counter(tensor.tensor_type.name for tensor in file.tensors.values())


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
