"""The shape of a decoder, with every number and switch that its computation depends on."""

import dataclasses
import math

COMPUTE_DTYPES = ("float32", "bfloat16")
ACTIVATIONS = ("silu", "gelu_tanh")
HEADS = ("logits", "scalar")
REMATS = ("layer", "dots", "none")
# In these families the width need be no multiple of the number of heads.
_ANY_WIDTH = ("qwen3", "mistral", "gemma")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The stretching of rotary frequencies to longer contexts.

    Attributes:
      kind: "linear" divides every frequency by `factor`. "llama3" (Llama 3.1) divides those of
        wavelengths over `original_length / low_factor`, keeps those under
        `original_length / high_factor`, and interpolates the band between.
      factor: at least 1.
      low_factor: for llama3 alone, as the next two; 0 otherwise.
      high_factor: above `low_factor`.
      original_length: positions of the pretraining before the stretch.
    """

    kind: str
    factor: float
    low_factor: float = 0.0
    high_factor: float = 0.0
    original_length: int = 0

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(
                f"rope scaling is {self.kind!r}: only linear and llama3 are supported."
            )
        numbers = (self.factor, self.low_factor, self.high_factor, self.original_length)
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"The rope scaling's numbers are {numbers!r}: give numbers.")
        if not self.factor >= 1:
            raise ValueError(f"The rope scaling's factor is {self.factor!r}: give at least 1.")
        bands = 0 < self.low_factor < self.high_factor and self.original_length > 0
        if self.kind == "llama3" and not bands:
            raise ValueError(
                f"llama3 rope scaling has low_freq_factor {self.low_factor}, high_freq_factor "
                f"{self.high_factor} and original_max_position_embeddings {self.original_length}: "
                "give 0 < low < high and a positive length."
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, a gated MLP.

    One decoder serves every family of `families.FAMILIES`, and these fields tell them apart. The
    config is hashable, so it can be a static argument of a jitted function.

    Attributes:
      vocab_size: rows of the embedding.
      hidden_size: width of the residual stream; a multiple of `num_heads`, as transformers asks
        of all but Qwen3, Mistral and Gemma 1.
      intermediate_size: width of the MLP.
      num_layers: decoder layers.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: width of one head, even; `num_heads * head_dim` need not equal `hidden_size`.
      rope_theta: base of the rotary frequencies.
      rms_norm_eps: added to the mean square in every norm.
      tie_embeddings: the head is the transposed embedding, and `head/kernel` does not exist.
      max_length: positions the model was made for; longer inputs are refused.
      family: its name in `families.FAMILIES`, for reading and writing checkpoints.
      rope_scaling: the scaling of layers with full attention; None for plain rotary positions.
      local_rope_theta: base of the rotary frequencies of windowed layers; None: `rope_theta`.
      windows: one number a layer, the tokens up to itself that a token sees, 0 for all. Empty:
        every layer sees all.
      qkv_bias: q, k and v have a bias.
      qk_norm: queries and keys are normalised per head, before the rotation.
      post_norms: attention and MLP outputs are normalised too, before they join the residual.
      norm_offset: norms scale by one plus their parameter.
      scale_embedding: embeddings are multiplied by sqrt(hidden_size).
      activation: the MLP's gate: "silu" or "gelu_tanh".
      query_scale: attention scores are divided by its square root; None: `head_dim`.
      attention_softcap: scores become cap * tanh(scores / cap); None: they stay.
      logits_softcap: the same for the logits.
      absent_ids: ranges [first, last + 1) of ids that the model's tokenizer lacks, such as the rows
        that pad an embedding. Sampler, trainer and every measure treat their logits as -inf, so
        they have no probability.
      head: "logits" of the next token, or "scalar", one number a token, for reward, cost and value
        models (transformers' ForSequenceClassification with one label).
      compute_dtype: dtype of matmuls and of the residual stream. Parameters keep their dtype
        (float32 masters), and norms, softmax and logits are float32.
      remat: the activations that a gradient keeps. "layer" keeps one residual a layer and
        recomputes the rest, "dots" also keeps the outputs of matmuls without a batch axis, "none"
        keeps everything.

    Raises:
      ValueError: a field is out of range; the message names it and the fix.
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
    family: str = "llama"
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    windows: tuple[int, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: bool = False
    scale_embedding: bool = False
    activation: str = "silu"
    query_scale: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    absent_ids: tuple[tuple[int, int], ...] = ()
    head: str = "logits"
    compute_dtype: str = "float32"
    remat: str = "layer"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} is {value!r}: give a positive integer.")
            if field.type is float or (field.type == float | None and value is not None):
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
        if self.hidden_size % self.num_heads and self.family not in _ANY_WIDTH:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, not a multiple of num_heads {self.num_heads}: "
                f"transformers refuses such a {self.family} model; change one of the two."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}: rotary positions turn pairs, give an even number."
            )
        windows = {window for window in self.windows if window}
        if self.windows and (
            len(self.windows) != self.num_layers or len(windows) > 1 or min(self.windows) < 0
        ):
            raise ValueError(
                f"windows is {self.windows}: give one number for each of {self.num_layers} layers, "
                "0 or the same positive window."
            )
        edges = [edge for pair in self.absent_ids for edge in pair]
        if edges != sorted({*edges}) or not all(0 <= edge <= self.vocab_size for edge in edges):
            raise ValueError(
                f"absent_ids is {self.absent_ids}: give ranges [first, last + 1) in order, within "
                f"vocab_size {self.vocab_size}."
            )
        choices = {
            "activation": ACTIVATIONS,
            "head": HEADS,
            "compute_dtype": COMPUTE_DTYPES,
            "remat": REMATS,
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}: give one of {', '.join(values)} (as a "
                    "string)."
                )

    @property
    def head_part(self) -> str:
        """The top-level name of the parameters that make logits: a tied embedding's, or "head"."""
        return "embed" if self.tie_embeddings else "head"
