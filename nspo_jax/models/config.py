"""The shape of a decoder, and its translation from and to Hugging Face's config.json."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

_COMPUTE_DTYPES = ("float32", "bfloat16", "float16")

# Fields of config.json that a ModelConfig holds: Hugging Face's name -> ours.
_REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "rms_norm_eps",
}
# Fields that may be missing or null, with the meaning that transformers gives to their absence.
_OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)
# Fields that change the computation, and the only value the decoder implements.
_FIXED = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
# Fields that describe training, tokens, storage or the interface, never the logits.
_IGNORED = frozenset(
    """
    model_type transformers_version _name_or_path torch_dtype dtype use_cache pretraining_tp
    bos_token_id eos_token_id pad_token_id initializer_range attention_dropout
    return_dict output_hidden_states output_attentions chunk_size_feed_forward
    is_encoder_decoder id2label label2id problem_type
    """.split()
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Hashable, so it can be a static argument of a jitted function.

    Attributes:
      vocab_size: rows of the embedding.
      hidden_size: width of the residual stream; a multiple of `num_heads`, as transformers asks.
      intermediate_size: width of the MLP.
      num_layers: decoder layers.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: width of one head, even; `num_heads * head_dim` need not equal `hidden_size`.
      rope_theta: base of the rotary frequencies.
      rms_norm_eps: added to the mean square in every norm.
      tie_embeddings: the head is the transposed embedding, and `head/kernel` does not exist.
      max_length: positions the model was made for; longer inputs are refused.
      compute_dtype: dtype of matmuls and of the residual stream. Parameters stay as they are
        given (float32 masters), and norms, softmax and logits are float32.

    Raises:
      ValueError: a field is out of range; the message names it and says what to change.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_embeddings: bool
    max_length: int
    compute_dtype: str = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} is {value!r}: give a positive integer.")
            if field.type is float:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number or not math.isfinite(value) or value <= 0:
                    raise ValueError(f"{field.name} is {value!r}: give a positive number.")
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} is {value!r}: give True or False.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}, which does not divide num_heads "
                f"{self.num_heads}: every key head serves the same number of query heads."
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, not a multiple of num_heads {self.num_heads}: "
                "transformers refuses such a Llama; change one of the two."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}: rotary positions turn pairs, give an even number."
            )
        if self.compute_dtype not in _COMPUTE_DTYPES:
            raise ValueError(
                f"compute_dtype is {self.compute_dtype!r}: give one of {', '.join(_COMPUTE_DTYPES)}"
                " (as a string)."
            )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> "ModelConfig":
        """Reads the content of a config.json, as transformers 4 or 5 spells it.

        A field this decoder does not know is an error rather than a guess, unless it is null.

        Args:
          fields: the parsed config.json.

        Returns:
          The config, computing in float32 (`dataclasses.replace` it for another dtype).

        Raises:
          ValueError: another architecture, a field whose value the decoder does not implement,
            an unknown field, or a missing one.
        """
        if fields.get("model_type") != "llama":
            raise ValueError(
                f"model_type is {fields.get('model_type')!r}: only 'llama' (LlamaForCausalLM) is "
                "supported."
            )
        missing = [name for name in _REQUIRED if fields.get(name) is None]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing from the model's config.json: add it.")
        for name, supported in _FIXED.items():
            value = fields.get(name)
            if value is not None and value != supported:
                raise ValueError(f"{name} is {value!r}: only {supported!r} is supported.")
        known = {*_REQUIRED, *_OPTIONAL, *_FIXED, *_IGNORED}
        for name, value in fields.items():
            if name not in known and value is not None:
                raise ValueError(
                    f"{name} is {value!r}: this field of a Llama config is not known here and may "
                    "change the output. Supported are plain Llama models; remove the field only "
                    "if you know that it has no effect."
                )

        heads = fields["num_attention_heads"]
        head_dim = fields.get("head_dim")
        if head_dim is None:
            if type(heads) is not int or heads < 1:
                raise ValueError(f"num_attention_heads is {heads!r}: give a positive integer.")
            head_dim = fields["hidden_size"] // heads
        kv_heads = fields.get("num_key_value_heads")
        return cls(
            **{ours: fields[theirs] for theirs, ours in _REQUIRED.items()},
            num_kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=head_dim,
            rope_theta=_rope_theta(fields),
            tie_embeddings=fields.get("tie_word_embeddings") or False,
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of a config.json that transformers 4 and 5 both load.

        Special tokens belong to a tokenizer, not to this config, so they are null.
        """
        return {
            **_FIXED,
            **{theirs: getattr(self, ours) for theirs, ours in _REQUIRED.items()},
            "model_type": "llama",
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "tie_word_embeddings": self.tie_embeddings,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "torch_dtype": "float32",
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }


def _rope_theta(fields: Mapping[str, Any]) -> float:
    """The rotary base from either spelling, refusing every scaled or partial variant."""
    theta = fields.get("rope_theta")
    for name in ("rope_scaling", "rope_parameters"):
        rope = dict(fields.get(name) or {})
        kinds = {rope.pop("rope_type", None), rope.pop("type", None)} - {None}
        theta = rope.pop("rope_theta", theta)
        if rope.get("partial_rotary_factor") == 1.0:
            del rope["partial_rotary_factor"]
        if kinds - {"default"} or rope:
            raise ValueError(
                f"{name} is {fields[name]!r}: only unscaled rotary positions (rope_type 'default' "
                "with a rope_theta) are supported."
            )
    return 10000.0 if theta is None else theta  # transformers' own default for Llama
