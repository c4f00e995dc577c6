"""A Llama decoder in Flax NNX, and the functional surface the rest of the code uses.

Outside this file parameters are a plain nested dict of arrays, with layers stacked on the first
axis and every linear kernel [in, out]:

    embed/embedding                    [vocab, d]
    layers/attention_norm/scale        [layers, d]
    layers/attention/{q,k,v}/kernel    [layers, d, heads * head_dim]
    layers/attention/o/kernel          [layers, heads * head_dim, d]
    layers/mlp_norm/scale              [layers, d]
    layers/mlp/{gate,up}/kernel        [layers, d, ff]
    layers/mlp/down/kernel             [layers, ff, d]
    norm/scale                         [d]
    head/kernel                        [d, vocab], absent when the embedding is tied

`lax.scan` runs the layers, so compile time does not grow with depth. The functions are pure and
meant to be called under `jax.jit` with the config static.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from nspo_jax.models import cache as cache_lib
from nspo_jax.models import config as config_lib

Params = dict[str, Any]
# (site name, inputs of that site [batch * time, in] float32) -> any pytree of arrays.
Observe = Callable[[str, jax.Array], Any]

_INIT_STDDEV = 0.02
_MASKED = -1e30  # finite, so that a row with nothing to attend to has no NaN, forward or backward


class Output(NamedTuple):
    """What a forward pass returns.

    Attributes:
      hidden: [batch, time, d] in the compute dtype, after the final norm; see `logits`.
      cache: the cache with the new tokens in it, None when none was given.
      observations: site name -> what `observe` returned for it, stacked over layers for the sites
        under `layers/`; empty without `observe`.
    """

    hidden: jax.Array
    cache: cache_lib.Cache | None
    observations: dict[str, Any]


# ------------------------------------------------------------------------------------------------
# Modules. Activations are flattened to [batch * time, ...] around the matmuls: XLA runs those
# about 1.5 times faster on CPU than the same matmuls on [batch, time, ...].
# ------------------------------------------------------------------------------------------------


class Linear(nnx.Module):
    """y = x @ kernel, without bias, in the dtype of x."""

    def __init__(self, inputs: int, outputs: int, stddev: float, *, rngs: nnx.Rngs):
        shape = (inputs, outputs)
        self.kernel = nnx.Param(stddev * jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...].astype(x.dtype)  # [tokens, in] -> [tokens, out]


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32, returned in the dtype of x."""

    def __init__(self, size: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Embedding(nnx.Module):
    """One row of `embedding` a token."""

    def __init__(self, vocab: int, size: int, *, rngs: nnx.Rngs):
        shape = (vocab, size)
        self.embedding = nnx.Param(
            _INIT_STDDEV * jax.random.normal(rngs.params(), shape, jnp.float32)
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.embedding[...][tokens]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: config_lib.ModelConfig, *, rngs: nnx.Rngs):
        d, c = config.hidden_size, config
        self.kv_heads, self.head_dim = c.num_kv_heads, c.head_dim
        self.q = Linear(d, c.num_heads * c.head_dim, _INIT_STDDEV, rngs=rngs)
        self.k = Linear(d, c.num_kv_heads * c.head_dim, _INIT_STDDEV, rngs=rngs)
        self.v = Linear(d, c.num_kv_heads * c.head_dim, _INIT_STDDEV, rngs=rngs)
        self.o = Linear(c.num_heads * c.head_dim, d, _residual_stddev(c), rngs=rngs)

    def __call__(self, x, rotation, mask, past, past_mask, observe):
        """[batch * time, d] -> [batch * time, d], and the new keys and values.

        mask is [batch, time, time]; past is None or (keys, values), each
        [batch, slots, kv_heads, head_dim], under past_mask [batch, slots].
        """
        batch, time, _ = mask.shape
        observe("layers/attention/in", x)
        heads = (batch, time, self.kv_heads, -1, self.head_dim)
        q = _rotate(self.q(x).reshape(heads), rotation)  # [batch, time, kv_heads, group, head_dim]
        k = _rotate(self.k(x).reshape(heads), rotation)[..., 0, :]
        v = self.v(x).reshape(heads)[..., 0, :]  # [batch, time, kv_heads, head_dim]

        scores = _scores(q, k, mask[:, None, None])  # [batch, kv_heads, group, time, time]
        if past is None:
            mixed = _mix(jax.nn.softmax(scores, axis=-1), v)
        else:  # the past comes first; the cache itself is not copied to append to it
            keys, values = past
            old = _scores(q, keys, past_mask[:, None, None, None])
            weights = jax.nn.softmax(jnp.concatenate([old, scores], axis=-1), axis=-1)
            slots = keys.shape[1]
            mixed = _mix(weights[..., :slots], values) + _mix(weights[..., slots:], v)
        mixed = mixed.astype(x.dtype).reshape(batch * time, -1)  # [batch * time, heads * head_dim]
        observe("layers/attention/out", mixed)
        return self.o(mixed), (k, v)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: config_lib.ModelConfig, *, rngs: nnx.Rngs):
        d, ff = config.hidden_size, config.intermediate_size
        self.gate = Linear(d, ff, _INIT_STDDEV, rngs=rngs)
        self.up = Linear(d, ff, _INIT_STDDEV, rngs=rngs)
        self.down = Linear(ff, d, _residual_stddev(config), rngs=rngs)

    def __call__(self, x, observe):
        observe("layers/mlp/in", x)
        inner = jax.nn.silu(self.gate(x)) * self.up(x)  # [batch * time, ff]
        observe("layers/mlp/out", inner)
        return self.down(inner)


class Layer(nnx.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: config_lib.ModelConfig, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x, rotation, mask, past, past_mask, observe):
        mixed, new = self.attention(
            self.attention_norm(x), rotation, mask, past, past_mask, observe
        )
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x), observe), new


class Transformer(nnx.Module):
    """The decoder as an NNX module; `layers` holds one `Layer` with stacked parameters."""

    def __init__(self, config: config_lib.ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stack(rngs):
            return Layer(config, rngs=rngs)

        self.layers = stack(rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_embeddings:
            self.head = Linear(config.hidden_size, config.vocab_size, _INIT_STDDEV, rngs=rngs)

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        cache: cache_lib.Cache | None = None,
        observe: Observe | None = None,
    ) -> Output:
        """See `forward`."""
        _check_shapes(self.config, tokens, mask, cache)
        batch, time = tokens.shape
        mask = mask.astype(bool)
        first = jnp.zeros((batch,), jnp.int32) if cache is None else cache.positions
        positions = first[:, None] + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1  # [batch, time]
        rotation = _rotation(self.config, positions)
        attend = mask[:, None, :] & jnp.tril(jnp.ones((time, time), bool))  # [batch, query, key]
        past_mask = None if cache is None else cache.valid

        def run_layer(x, inputs):
            state, past = inputs
            recorder = _Recorder(observe)
            x, new = nnx.merge(layer_def, state)(x, rotation, attend, past, past_mask, recorder)
            return x, (new, recorder.results)

        x = self.embed(tokens.reshape(-1)).astype(self.config.compute_dtype)  # [batch * time, d]
        layer_def, layers = nnx.split(self.layers)
        past = None if cache is None else (cache.keys, cache.values)
        # Gradients recompute each layer: memory stays at one residual a layer, and on CPU a
        # training step is a quarter faster than with every layer's intermediates stacked.
        run_layer = jax.checkpoint(run_layer, prevent_cse=False)
        x, (new, observations) = jax.lax.scan(run_layer, x, (layers, past))
        x = self.norm(x)
        if not self.config.tie_embeddings:
            recorder = _Recorder(observe)
            recorder("head/in", x)
            observations |= recorder.results
        if cache is not None:
            cache = cache_lib.append_to_cache(cache, *new, mask)
        return Output(x.reshape(batch, time, -1), cache, observations)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See the function `logits`."""
        tied = self.config.tie_embeddings
        kernel = self.embed.embedding[...].T if tied else self.head.kernel[...]  # [d, vocab]
        x = hidden.reshape(-1, hidden.shape[-1]).astype(self.config.compute_dtype)
        result = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return result.reshape(*hidden.shape[:-1], -1)


# ------------------------------------------------------------------------------------------------
# The functional surface.
# ------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="config")
def init_params(config: config_lib.ModelConfig, key: jax.Array) -> Params:
    """Float32 parameters: normal 0.02, norms 1, `o` and `down` divided by sqrt(2 layers)."""
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(params=key))))


def abstract_params(config: config_lib.ModelConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`, without allocating it."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def bind(config: config_lib.ModelConfig, params: Params) -> Transformer:
    """The NNX module that holds these parameters (shared, not copied)."""
    return nnx.merge(_graphdef(config), nnx.State(params))


def forward(
    config: config_lib.ModelConfig,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    cache: cache_lib.Cache | None = None,
    observe: Observe | None = None,
) -> Output:
    """Runs the decoder on a batch of tokens.

    With a cache, the tokens are written to the slots after `cache.length`; the caller makes the
    cache large enough for all tokens it will see, since `length` is not known under jit.

    Args:
      config: the model.
      params: nested dict as in the module docstring.
      tokens: [batch, time] int32. The value at padding does not matter.
      mask: [batch, time] bool, False at padding, which may be anywhere. A token's position is the
        number of real tokens before it, the cache's included. Hidden states at padding are finite
        and mean nothing.
      cache: None, or the cache of the tokens before these.
      observe: None, or a function (site, x) -> pytree called on the float32 input
        x [batch * time, in] of every site of `input_sites`, padding included. It runs inside the
        scan over layers, so that only its results are stacked: `lambda site, x: x` gives the raw
        inputs, [layers, batch * time, in] each.

    Returns:
      An `Output`.

    Raises:
      ValueError: shapes that do not agree, or more tokens than `config.max_length` or the cache.
    """
    return bind(config, params)(tokens, mask, cache, observe)


def logits(config: config_lib.ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Next-token logits, float32 [..., vocab], of final hidden states [..., d]."""
    return bind(config, params).logits(hidden)


def input_sites(config: config_lib.ModelConfig) -> dict[str, tuple[str, ...]]:
    """Input site -> paths of the kernels that read it.

    A tied head is left out: it cannot be projected without touching the embedding.
    """
    sites = {
        "layers/attention/in": tuple(f"layers/attention/{name}/kernel" for name in "qkv"),
        "layers/attention/out": ("layers/attention/o/kernel",),
        "layers/mlp/in": ("layers/mlp/gate/kernel", "layers/mlp/up/kernel"),
        "layers/mlp/out": ("layers/mlp/down/kernel",),
    }
    return sites if config.tie_embeddings else sites | {"head/in": ("head/kernel",)}


# ------------------------------------------------------------------------------------------------
# Pieces.
# ------------------------------------------------------------------------------------------------


class _Recorder:
    """Collects what `observe` returns at each site of one layer."""

    def __init__(self, observe: Observe | None):
        self.observe = observe
        self.results = {}

    def __call__(self, site: str, x: jax.Array) -> None:
        if self.observe is not None:
            self.results[site] = self.observe(site, x.astype(jnp.float32))


@functools.lru_cache(maxsize=32)
def _graphdef(config):
    return nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))


def _residual_stddev(config):
    return _INIT_STDDEV / math.sqrt(2 * config.num_layers)


def _rotation(config, positions):
    """cos and sin of the rotary angles, float32 [batch, time, 1, 1, head_dim / 2]."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    angles = positions[:, :, None, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x, rotation):
    """Rotary positions on the last axis, first half paired with second half as in transformers."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _scores(q, k, mask):
    """Masked attention scores, float32 [batch, kv_heads, group, time, key]."""
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores * q.shape[-1] ** -0.5, _MASKED)


def _mix(weights, values):
    """Weighted values, float32 [batch, time, kv_heads, group, head_dim]."""
    weights = weights.astype(values.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, values, preferred_element_type=jnp.float32)


def _check_shapes(config, tokens, mask, cache):
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise ValueError(f"tokens {tokens.shape} and mask {mask.shape} must both be [batch, time].")
    batch, time = tokens.shape
    if time > config.max_length:
        raise ValueError(
            f"{time} tokens for a model of max_length {config.max_length}: shorten the input."
        )
    if cache is not None and (cache.valid.shape[0] != batch or cache.valid.shape[1] < time):
        raise ValueError(
            f"tokens {tokens.shape} do not fit a cache of [batch, slots] {cache.valid.shape}: make "
            "it with empty_cache(config, batch, prompt + new tokens)."
        )
