"""The config of a GGUF file's model: its metadata as a `ModelConfig`, and its special ids.

The sources are llama.cpp's convert_hf_to_gguf.py, which wrote the keys, and its
src/llama-model.cpp, which has the defaults of missing ones.
"""

from typing import Any

import numpy as np

from nspo_jax.models import architecture, families, gguf_tokenizer, hf_config
from nspo_jax.models.gguf_file import ARCHITECTURES, ROPE_FACTORS, TENSORS, File, decimal

# The keys behind "ARCHITECTURE." that describe the model, for every architecture.
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
# The keys that change nothing with this value (None: with any).
_OFF = {
    "rope.scaling.finetuned": None, "rope.scaling.original_context_length": None,
    "attention.causal": True, "expert_count": 0, "expert_used_count": 0,
    "pooling_type": 0, "use_parallel_residual": False, "attention.sliding_window": 0,
}  # fmt: skip
# One in so many layers sees all, as in the family's row.
_PATTERNS = {"gemma2": 2, "gemma3": 6}
# llama.cpp takes a Gemma of so many layers for the 27B, which scales queries in its own way.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
# general.sampling.* -> generation_config.json
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}  # fmt: skip


def read_config(file: File) -> architecture.ModelConfig:
    """Reads the model's config from the file's metadata and its tensors' names and shapes.

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
    model_config = architecture.ModelConfig(
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
        rms_norm_eps=decimal(file.require("attention.layer_norm_rms_epsilon", float)),
        tie_embeddings=TENSORS["head/kernel"] not in file.tensors,
        max_length=file.require("context_length"),
    )
    # the way through config.json shows that the config can be written
    return hf_config.read_config(hf_config.write_config(model_config))


def special_ids(file: File) -> tuple[dict[str, int | None], dict[str, Any]]:
    """Returns the special ids of config.json, and the fields of generation_config.json."""
    keys = {"bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}
    ids = {name: file.fields.get(f"tokenizer.ggml.{key}") for name, key in keys.items()}
    ends = gguf_tokenizer.end_ids(file.fields)
    ids["eos_token_id"] = ends[0] if ends else None
    generation: dict[str, Any] = {name: value for name, value in ids.items() if value is not None}
    if len(ends) > 1:
        generation["eos_token_id"] = ends
    for key, name in _SAMPLING.items():
        value = file.fields.get(f"general.sampling.{key}")
        if value is not None:
            generation |= {
                "do_sample": True,
                name: value if type(value) is int else decimal(value),
            }
    return ids, generation


def _check_keys(file: File) -> None:
    """Raises ValueError for a key that is not known and may change the output."""
    prefix = f"{file.architecture}."
    known, off = _KEYS | _OWN_KEYS.get(file.architecture, set()), dict(_OFF)
    if file.architecture in _PATTERNS:
        off["attention.sliding_window_pattern"] = _PATTERNS[file.architecture]
    for full in file.fields:
        key, value = full.removeprefix(prefix), file.fields[full]
        if not full.startswith(prefix) or key in known:
            continue
        if key not in off:
            raise ValueError(
                f"{file.path}: {full} is {value!r}: this key is not known here and may change the "
                f"output; expected a plain {file.architecture} model. The decoder needs what the "
                "key names: docs/adding_a_family.md."
            )
        if off[key] is not None and value != off[key]:
            raise ValueError(
                f"{file.path}: {full} is {value!r}; supported is {off[key]!r} alone, for the "
                "decoder does not implement it. Take another model."
            )


def _gemma(file: File, head_dim: int) -> dict[str, Any]:
    """Reads scales, caps and windows of a Gemma, with llama.cpp's defaults."""
    if file.architecture not in _GEMMA_27B:
        return {}
    layers, hidden = file.require("block_count"), file.require("embedding_length")
    scale: float = head_dim
    if layers == _GEMMA_27B[file.architecture]:
        scale = hidden / file.require("attention.head_count")
    if file.get("attention.scale"):
        scale = round(float(decimal(file.get("attention.scale"))) ** -2, 4)
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
        **{name: value and decimal(value) for name, value in caps.items()},
    }


def _rope(file: File, family: families.Family, head_dim: int) -> dict[str, Any]:
    """Reads rotary bases and scaling."""
    theta, local = family.rope_thetas
    theta = decimal(file.get("rope.freq_base", theta))
    local = local and decimal(file.get("rope.freq_base_swa", local))
    kind, factor = file.get("rope.scaling.type", "none"), file.get("rope.scaling.factor", 1.0)
    if file.get("rope.scale_linear"):  # old files have this key
        kind, factor = "linear", file.get("rope.scale_linear")
    if kind not in ("none", "linear"):
        raise ValueError(
            f"{file.path}: {file.architecture}.rope.scaling.type is {kind!r}; supported are 'none' "
            "and 'linear', and Llama 3.1's, which is stored as the tensor rope_freqs.weight. Take "
            "a model without it."
        )
    scaling = None
    if kind == "linear" and factor != 1.0:
        scaling = architecture.RopeScaling("linear", decimal(factor))
    if ROPE_FACTORS in file.tensors and file.architecture == "llama":
        stretched = _llama3_scaling(file, head_dim, theta)
        if stretched and scaling:
            raise ValueError(
                f"{file.path} has {ROPE_FACTORS} and {file.architecture}.rope.scaling.type "
                "'linear'; supported is one of them. Convert the original model again."
            )
        scaling = stretched or scaling
    return {"rope_theta": theta, "local_rope_theta": local, "rope_scaling": scaling}


def _llama3_scaling(file: File, head_dim: int, theta: float) -> architecture.RopeScaling | None:
    """Recovers the settings of Llama 3.1's rotary scaling from the factors that they made.

    GGUF stores the divisor of every frequency, and Hugging Face four numbers that determine them.
    All published models have low and high factors of 1 and 4.
    """
    factors = file.read(ROPE_FACTORS).reshape(-1).astype(np.float64)
    if (factors == 1).all():
        return None
    lengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        scaling = architecture.RopeScaling("llama3", decimal(factors.max()), 1.0, 4.0, original)
        smooth = np.clip((original / lengths - 1) / 3, 0, 1)
        made = 1 / ((1 - smooth) / scaling.factor + smooth)
        if factors.shape == made.shape and np.allclose(factors, made, rtol=1e-4):
            return scaling
    raise ValueError(
        f"{file.path}: {ROPE_FACTORS} is {factors.round(3).tolist()}; expected the "
        "factors of Llama 3.1's rotary scaling with low_freq_factor 1 and high_freq_factor 4. "
        "Others are not supported: take another model."
    )
