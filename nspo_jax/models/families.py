"""The open model families of the decoder: the names in their config.json and of their tensors.

A family is a row of `FAMILIES`: its names in transformers, the `ModelConfig` fields that follow
from the family alone, the config.json fields that vary, and the tensor names that differ from
Llama's. `hf_config` and `hf` read these rows; docs/adding_a_family.md walks through one.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

# Our parameter path -> the tensor's name in the file ({} is the layer), for every part that some
# family has. Kernels are [in, out] here and [out, in] there.
TENSORS = {
    "embed/embedding": "model.embed_tokens.weight",
    "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
    "layers/attention/q/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attention/k/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attention/v/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attention/o/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers/attention/q/bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/attention/k/bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/attention/v/bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/attention/q_norm/scale": "model.layers.{}.self_attn.q_norm.weight",
    "layers/attention/k_norm/scale": "model.layers.{}.self_attn.k_norm.weight",
    "layers/attention_post_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down/kernel": "model.layers.{}.mlp.down_proj.weight",
    "layers/mlp_post_norm/scale": "model.layers.{}.post_feedforward_layernorm.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
    "score/kernel": "score.weight",
}
# If attention's output is normalised too, Llama's name for the MLP's norm means that norm.
_POST_NORMS = {"layers/mlp_norm/scale": "model.layers.{}.pre_feedforward_layernorm.weight"}
# Hugging Face's name -> ours, of the fields that every config.json has.
REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "rms_norm_eps",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """The traits of a family.

    Attributes:
      model_type: config.json's `model_type`.
      causal: the class of its language models in transformers, config.json's `architectures`.
      classifier: the class of its one-label classifiers, which are reward, cost and value models.
      traits: `ModelConfig` fields that are the same for all models of the family.
      fields: further config.json fields: name -> (`ModelConfig` field, value when absent).
      fixed: fields that change the computation -> the only value that the decoder implements.
        Absent or null is fine too.
      synonyms: fields of `fixed` -> another spelling that transformers reads as the same value.
      rope_thetas: bases of the rotary frequencies when absent: (full, windowed layers).
      is_windowed: (config.json's fields, layer) -> True if the layer has windowed attention, for a
        config.json without `layer_types`; None: the family has no windows.
      window_switch: the field of config.json that must be true for windows to be used; "" if there
        is none.
      one_window: `sliding_window` alone says what all layers see, null for everything. transformers
        does not read `layer_types` of such a family, and `is_windowed` is None.
      tensors: names that differ from `TENSORS`.
    """

    model_type: str
    causal: str
    classifier: str
    traits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, tuple[str, Any]] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    synonyms: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rope_thetas: tuple[float, float | None] = (10000.0, None)
    is_windowed: Callable[[Mapping[str, Any], int], bool] | None = None
    window_switch: str = ""
    one_window: bool = False
    tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def tensor(self, path: str) -> str:
        """Returns the name of a parameter's tensor in a checkpoint, with {} for the layer."""
        return self.tensors.get(path, TENSORS[path])


def _qwen_is_windowed(fields: Mapping[str, Any], layer: int) -> bool:
    first = fields.get("max_window_layers")
    return layer >= (28 if first is None else first)


def _gemma3_is_windowed(fields: Mapping[str, Any], layer: int) -> bool:
    # every sixth layer sees all unless the config has another pattern
    return bool((layer + 1) % (fields.get("sliding_window_pattern") or 6))


_GEMMA_1_TRAITS = {"norm_offset": True, "scale_embedding": True, "activation": "gelu_tanh"}
_GEMMA_TRAITS = _GEMMA_1_TRAITS | {"post_norms": True}
_GEMMA_1_FIELDS = {
    "head_dim": ("head_dim", 256),
    "tie_word_embeddings": ("tie_embeddings", True),
}
_GEMMA_FIELDS = _GEMMA_1_FIELDS | {"query_pre_attn_scalar": ("query_scale", 256)}
_GEMMA_FIXED = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": False,
}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            model_type="llama",
            causal="LlamaForCausalLM",
            classifier="LlamaForSequenceClassification",
            fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        ),
        Family(
            model_type="mistral",
            causal="MistralForCausalLM",
            classifier="MistralForSequenceClassification",
            fixed={"hidden_act": "silu"},
            one_window=True,
        ),
        Family(
            model_type="qwen2",
            causal="Qwen2ForCausalLM",
            classifier="Qwen2ForSequenceClassification",
            traits={"qkv_bias": True},
            fixed={"hidden_act": "silu", "use_mrope": False},
            is_windowed=_qwen_is_windowed,
            window_switch="use_sliding_window",
        ),
        Family(
            model_type="qwen3",
            causal="Qwen3ForCausalLM",
            classifier="Qwen3ForSequenceClassification",
            traits={"qk_norm": True},
            fields={"head_dim": ("head_dim", 128)},
            fixed={"hidden_act": "silu", "attention_bias": False},
            is_windowed=_qwen_is_windowed,
            window_switch="use_sliding_window",
        ),
        Family(
            model_type="gemma",
            causal="GemmaForCausalLM",
            classifier="GemmaForSequenceClassification",
            traits=_GEMMA_1_TRAITS,
            fields=_GEMMA_1_FIELDS,
            fixed=_GEMMA_FIXED,
            # The first releases say "gelu" and mean the tanh approximation, which transformers 5
            # computes for them. It does not read `hidden_activation`, and transformers 4 takes
            # that field at its word, so the field has no synonym.
            synonyms={"hidden_act": "gelu"},
        ),
        Family(
            model_type="gemma2",
            causal="Gemma2ForCausalLM",
            classifier="Gemma2ForSequenceClassification",
            traits=_GEMMA_TRAITS,
            fields=_GEMMA_FIELDS
            | {
                "attn_logit_softcapping": ("attention_softcap", 50.0),
                "final_logit_softcapping": ("logits_softcap", 30.0),
            },
            fixed=_GEMMA_FIXED,
            is_windowed=lambda fields, layer: layer % 2 == 0,
            tensors=_POST_NORMS,
        ),
        Family(
            model_type="gemma3_text",
            causal="Gemma3ForCausalLM",
            classifier="Gemma3TextForSequenceClassification",
            traits=_GEMMA_TRAITS | {"qk_norm": True},
            fields=_GEMMA_FIELDS | {"final_logit_softcapping": ("logits_softcap", None)},
            # transformers stores an attention soft cap here and does not apply it
            fixed=_GEMMA_FIXED | {"attn_logit_softcapping": None},
            rope_thetas=(1e6, 1e4),
            is_windowed=_gemma3_is_windowed,
            tensors=_POST_NORMS,
        ),
    )
}
