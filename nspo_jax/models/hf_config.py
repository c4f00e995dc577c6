"""The way from Hugging Face's config.json to `ModelConfig` and back, for every family."""

from collections.abc import Mapping
import fnmatch
import functools
import logging
from typing import Any

from nspo_jax.models import architecture, families

# These fields describe training, tokens, storage or the interface, never the output.
_IGNORED = frozenset(
    """
    model_type architectures transformers_version _name_or_path torch_dtype dtype use_cache
    pretraining_tp bos_token_id eos_token_id pad_token_id initializer_range attention_dropout
    return_dict output_hidden_states output_attentions chunk_size_feed_forward problem_type
    is_encoder_decoder id2label label2id num_labels cache_implementation max_length
    _attn_implementation _attn_implementation_autoset attn_implementation
    """.split()
)
# These are as harmless, but no part of these families' configs: fields that tools leave behind, and
# all defaults of transformers 4, generation's included. They are read past with a line in the log.
_BOOKKEEPING = (
    "unsloth_*", "transformers.js_config", "*_version", "*_token_id", "*_token_index",
    "*dropout", "*dropout_prob", "*_pdrop", "output_scores", "return_dict_in_generate",
    "tokenizer_class", "processor_class", "tokenizer_name", "chat_template", "vocab_file",
    "bos_token", "eos_token", "pad_token", "unk_token", "model_name", "model_max_length",
    "max_sequence_length",
    "max_seq_length", "max_seq_len", "seq_length", "seq_len", "gradient_checkpointing",
    "use_gradient_checkpointing", "model_parallel", "tensor_parallel", "device_map", "use_sdpa",
    "use_flash_attn*", "use_flash_attention*", "_flash_attn_*", "flash_attention", "_commit_hash",
    "torchscript", "use_bfloat16", "fp16", "bf16", "fp32", "is_decoder", "prefix",
    "finetuning_task", "task_specific_params", "tf_legacy_loss", "cross_attention_hidden_size",
    "initializer_std", "init_std", "classifier_bias", "summary_*", "label_smoothing*",
    "do_sample", "temperature", "top_p", "top_k", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "length_penalty", "diversity_penalty", "encoder_no_repeat_ngram_size",
    "no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "num_beams",
    "num_beam_groups", "early_stopping", "min_length", "max_new_tokens", "min_new_tokens",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "use_return_dict", "license", "author", "base_model",
)  # fmt: skip
# These are harmless with this value alone, which switches them off.
_OFF = {
    "tie_encoder_decoder": False, "add_cross_attention": False, "pruned_heads": {},
    "quantization_config": {}, "rope_interleaved": False, "partial_rotary_factor": 1.0,
    "attention_bias": False, "mlp_bias": False, "use_mrope": False, "use_qk_norm": False,
    "use_sliding_window": False, "use_bidirectional_attention": False, "parallel_residual": False,
    "use_parallel_residual": False, "logit_scale": 1.0, "logits_scaling": 1.0,
    "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "num_local_experts": 0,
    "num_experts": 0, "clip_qkv": 0,
}  # fmt: skip
_log = logging.getLogger(__name__)
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_LOCAL_THETA = "rope_local_base_freq"
_WINDOW = "sliding_window"
_WINDOWS = (
    _WINDOW, "max_window_layers", "layer_types",
    "sliding_window_pattern", "_sliding_window_pattern", "sliding_window_size",
)  # fmt: skip
_WINDOW_WHEN_ABSENT = 4096  # in all of transformers' configs
_LINEAR = ("factor",)
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_FULL, _WINDOWED = "full_attention", "sliding_attention"


def read_config(fields: Mapping[str, Any]) -> architecture.ModelConfig:
    """Reads the content of a config.json, in the spelling of transformers 4 or 5.

    An unknown field is an error rather than a guess, unless it is null. Bookkeeping that cannot
    change the output is read past, and named once in the log.

    Args:
      fields: the parsed config.json.

    Returns:
      The config, computing in float32 (`dataclasses.replace` it for another dtype).

    Raises:
      ValueError: an unsupported architecture, a field whose value the decoder does not implement,
        an unknown field, or a missing one.
    """
    family = families.FAMILIES.get(fields.get("model_type", ""))
    if family is None:
        raise ValueError(
            f"model_type is {fields.get('model_type')!r}: supported are "
            f"{', '.join(families.FAMILIES)}. docs/adding_a_family.md says how to add one."
        )
    required = [*families.REQUIRED]
    if family.model_type != "llama":  # Llama's first configs predate grouped queries
        required.append("num_key_value_heads")
    missing = [name for name in required if fields.get(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing from the model's config.json: add it.")
    for name in (*required, "head_dim"):
        value = fields.get(name)
        if value is not None and name != "rms_norm_eps" and (type(value) is not int or value < 1):
            raise ValueError(f"{name} is {value!r}: give a positive integer.")
    if fields.get("num_key_value_heads", 1) == 0:
        raise ValueError("num_key_value_heads is 0: give a positive integer.")
    for name, supported in family.fixed.items():
        if fields.get(name) not in (None, supported, family.synonyms.get(name)):
            raise ValueError(f"{name} is {fields[name]!r}: only {supported!r} is supported.")
    known = {
        *required, *family.fixed, *family.fields, *_ROPE, *_IGNORED,
        "num_key_value_heads", "head_dim", "tie_word_embeddings",
        *((*_WINDOWS, family.window_switch) if family.is_windowed else ()),
        *((_WINDOW,) if family.one_window else ()),
        *((_LOCAL_THETA,) if family.rope_thetas[1] else ()),
    }  # fmt: skip
    foreign = {
        name: value for name, value in fields.items() if name not in known and value is not None
    }
    for name, value in foreign.items():
        if name in _OFF and value != _OFF[name]:
            raise ValueError(
                f"{name} is {value!r}: only {_OFF[name]!r} is supported of a {family.model_type} "
                "model, for the decoder does not implement it."
            )
        if name not in _OFF and not any(fnmatch.fnmatch(name, known) for known in _BOOKKEEPING):
            raise ValueError(
                f"{name} is {value!r}: this field of a {family.model_type} config is not known "
                "here and may change the output. Not supported: if transformers' configuration of "
                f"{family.model_type} does not read it, or its value there is the default, delete "
                "the line from the model's config.json; otherwise the decoder needs what it names "
                "(docs/adding_a_family.md)."
            )
    if foreign:
        _tell(", ".join(sorted(foreign)))

    heads, head_dim = fields["num_attention_heads"], fields.get("head_dim")
    values = {
        "num_kv_heads": fields.get("num_key_value_heads") or heads,
        "head_dim": head_dim or fields["hidden_size"] // heads,
        "tie_embeddings": fields.get("tie_word_embeddings") or False,
        **{ours: fields[theirs] for theirs, ours in families.REQUIRED.items()},
        **family.traits,
    }
    for name, (ours, absent) in family.fields.items():
        values[ours] = fields.get(name, absent)
    return architecture.ModelConfig(
        **values,
        family=family.model_type,
        head=_head(family, fields),
        windows=_windows(family, fields),
        **_rope(family, fields),
    )


@functools.cache
def _tell(names: str) -> None:
    """Logs a line once, however often a config is read."""
    _log.info("config.json: read past %s, which cannot change the output", names)


def write_config(model_config: architecture.ModelConfig) -> dict[str, Any]:
    """Makes the content of a config.json that transformers 4 (from 4.53 on) and 5 both load.

    Special tokens belong to a tokenizer, not to this config, so they are null.
    """
    family = families.FAMILIES[model_config.family]
    fields: dict[str, Any] = {
        **family.fixed,
        **{theirs: getattr(model_config, ours) for theirs, ours in families.REQUIRED.items()},
        "model_type": family.model_type,
        "architectures": [family.causal if model_config.head == "logits" else family.classifier],
        "num_key_value_heads": model_config.num_kv_heads,
        "head_dim": model_config.head_dim,
        "tie_word_embeddings": model_config.tie_embeddings,
        "rope_theta": model_config.rope_theta,
        "rope_scaling": _write_scaling(model_config.rope_scaling),
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    fields |= {name: getattr(model_config, ours) for name, (ours, _) in family.fields.items()}
    if model_config.head == "scalar":
        fields |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    if model_config.local_rope_theta is not None:
        fields[_LOCAL_THETA] = model_config.local_rope_theta
    window = max(model_config.windows, default=0) or None
    if family.one_window:
        fields[_WINDOW] = window
    if family.is_windowed:
        fields |= {
            _WINDOW: window,
            "layer_types": [
                _WINDOWED if i < len(model_config.windows) and model_config.windows[i] else _FULL
                for i in range(model_config.num_layers)
            ],
        }
        if family.window_switch:
            fields[family.window_switch] = window is not None
    return fields


def _head(family: families.Family, fields: Mapping[str, Any]) -> str:
    architectures = fields.get("architectures") or [family.causal]
    if architectures == [family.causal]:
        return "logits"
    if architectures != [family.classifier]:
        raise ValueError(
            f"architectures is {architectures!r}: only {family.causal!r} and, with one label, "
            f"{family.classifier!r} are supported."
        )
    listed = len(fields.get("id2label") or ())
    labels = fields.get("num_labels") or listed or 2  # transformers' default is 2
    if labels != 1:
        raise ValueError(
            f"The classifier has {labels} labels (num_labels, id2label): only one label, a score, "
            "is supported."
        )
    return "scalar"


def _windows(family: families.Family, fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Reads each layer's window; empty if all layers see all."""
    layers, kinds = fields["num_hidden_layers"], fields.get("layer_types")
    if family.one_window:
        if fields.get(_WINDOW, _WINDOW_WHEN_ABSENT) is None:
            return ()
        return (_window(fields),) * layers
    if family.is_windowed is None:
        return ()
    if kinds is not None and (len(kinds) != layers or {*kinds} - {_FULL, _WINDOWED}):
        raise ValueError(
            f"layer_types is {kinds!r}: supported are {_FULL!r} and {_WINDOWED!r}, one for each of "
            f"num_hidden_layers = {layers}."
        )
    switch = family.window_switch
    if switch and not fields.get(switch):
        if kinds and _WINDOWED in kinds:
            raise ValueError(
                f"layer_types is {kinds!r} and {switch} is {fields.get(switch)!r}: windowed layers "
                "are supported only where it is true."
            )
        return ()
    if kinds is None:
        kinds = [_WINDOWED if family.is_windowed(fields, i) else _FULL for i in range(layers)]
    if _WINDOWED not in kinds:
        return ()
    window = _window(fields)
    if fields.get("sliding_window_size") not in (None, window):  # Gemma 2's is never read
        raise ValueError(
            f"sliding_window_size is {fields['sliding_window_size']!r} and sliding_window is "
            f"{window}: supported is the same number in both."
        )
    return tuple(window if kind == _WINDOWED else 0 for kind in kinds)


def _window(fields: Mapping[str, Any]) -> int:
    window = fields.get(_WINDOW, _WINDOW_WHEN_ABSENT)
    if type(window) is not int or window < 1:
        raise ValueError(f"{_WINDOW} is {window!r}: supported is a positive integer.")
    return window


def _rope(family: families.Family, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Reads rotary bases and scaling in either spelling, with transformers' precedence."""
    theta, local = family.rope_thetas
    theta = fields.get("rope_theta") or theta
    old, new = fields.get("rope_scaling"), fields.get("rope_parameters")
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}: supported is a mapping, or null.")
    old, new = dict(old or {}), dict(new or {})
    if new and (_FULL in new) != (local is not None):
        raise ValueError(
            f"rope_parameters is {new!r}: supported is "
            + (f"a mapping for each of {_FULL} and {_WINDOWED}." if local else "a single mapping.")
        )
    if local is not None:  # rope_scaling belongs to the layers with full attention
        windowed = new.get(_WINDOWED) or {}
        local = windowed.get("rope_theta", fields.get(_LOCAL_THETA) or local)
        if scaling := _scaling("rope_parameters", windowed, fields):
            raise ValueError(
                f"rope_parameters is {new!r}: it scales the windowed layers ({scaling}), which is "
                "not supported."
            )
        new = (new.get(_FULL) or {}) | old
    elif new and {name: new.get(name) for name in old} != old:
        raise ValueError(
            f"rope_scaling is {old!r} and rope_parameters is {new!r}: supported is one of them, or "
            "the same in both."
        )
    new = new or old
    scaling = _scaling("rope_scaling" if old else "rope_parameters", new, fields)
    return {
        "rope_theta": new.get("rope_theta") or theta,
        "local_rope_theta": local,
        "rope_scaling": scaling,
    }


def _scaling(
    name: str, rope: Mapping[str, Any], fields: Mapping[str, Any]
) -> architecture.RopeScaling | None:
    """Reads the scaling in one mapping of config.json; raises ValueError for an unknown one."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    wanted = {"default": (), "linear": _LINEAR, "llama3": _LLAMA3}.get(kind)
    extra = {k for k, v in rope.items() if v is not None} - {"rope_type", "type", "rope_theta"}
    if rope.get("partial_rotary_factor") == 1.0:
        extra.discard("partial_rotary_factor")
    if wanted is None or extra != {*wanted}:
        raise ValueError(
            f"{name} is {fields[name]!r}: supported are rope_type 'default', 'linear' with factor, "
            f"and 'llama3' with {', '.join(_LLAMA3)}, and nothing besides."
        )
    return architecture.RopeScaling(kind, *(rope[name] for name in wanted)) if wanted else None


def _write_scaling(scaling: architecture.RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    numbers = (
        scaling.factor, scaling.low_factor, scaling.high_factor, scaling.original_length,
    )  # fmt: skip
    names = _LLAMA3 if scaling.kind == "llama3" else _LINEAR
    return {"rope_type": scaling.kind, **dict(zip(names, numbers, strict=False))}
