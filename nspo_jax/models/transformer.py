"""The decoder in Flax NNX, and its functional surface for the rest of the code.

Outside this folder parameters are a plain nested dict of arrays, with layers stacked on the first
axis and every linear kernel [in, out]:

    embed/embedding                         [vocab, d]
    layers/attention_norm/scale             [layers, d]
    layers/attention/{q,k,v}/kernel         [layers, d, heads * head_dim]
    layers/attention/{q,k,v}/bias           [layers, heads * head_dim], with qkv_bias
    layers/attention/{q,k}_norm/scale       [layers, head_dim], with qk_norm
    layers/attention/o/kernel               [layers, heads * head_dim, d]
    layers/attention_post_norm/scale        [layers, d], with post_norms
    layers/mlp_norm/scale                   [layers, d]
    layers/mlp/{gate,up}/kernel             [layers, d, ff]
    layers/mlp/down/kernel                  [layers, ff, d]
    layers/mlp_post_norm/scale              [layers, d], with post_norms
    norm/scale                              [d]
    head/kernel                             [d, vocab], absent when the embedding is tied
    score/kernel                            [d, 1], with a scalar head, which has no head/kernel

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
import numpy as np

from nspo_jax import sharding
from nspo_jax.models import architecture, attention
from nspo_jax.models import cache as cache_lib
from nspo_jax.models import layers as layers_lib

Params = dict[str, Any]
# (site name, inputs of that site [batch * time, in] float32) -> any pytree of arrays.
Observe = Callable[[str, jax.Array], Any]
# The logit of an id that is no token. Its probability is exactly 0, and unlike with -inf so are its
# terms in a KL divergence.
_ABSENT = -1e30


class Output(NamedTuple):
    """The result of a forward pass.

    Attributes:
      hidden: [batch, time, d] in the compute dtype, after the final norm; see `heads`.
      cache: the cache with the new tokens in it; None without a cache.
      observations: site name -> the results of `observe`, stacked over layers for the sites under
        `layers/`; empty without `observe`.
    """

    hidden: jax.Array
    cache: cache_lib.Cache | None
    observations: dict[str, Any]


class Layer(nnx.Module):
    """One pre-norm decoder layer; with `post_norms` its two outputs are normalised too."""

    def __init__(self, model_config: architecture.ModelConfig, *, rngs: nnx.Rngs):
        def norm():
            return layers_lib.RMSNorm(
                model_config.hidden_size, model_config.rms_norm_eps, offset=model_config.norm_offset
            )

        self.attention_norm = norm()
        self.attention = attention.Attention(model_config, rngs=rngs)
        self.mlp_norm = norm()
        self.mlp = layers_lib.MLP(model_config, rngs=rngs)
        self.post_norms = model_config.post_norms
        if model_config.post_norms:
            self.attention_post_norm = norm()
            self.mlp_post_norm = norm()

    def __call__(self, x, context, past, observe):
        mixed, new = self.attention(self.attention_norm(x), context, past, observe)
        x = x + (self.attention_post_norm(mixed) if self.post_norms else mixed)
        mixed = self.mlp(self.mlp_norm(x), observe)
        return x + (self.mlp_post_norm(mixed) if self.post_norms else mixed), new


class Transformer(nnx.Module):
    """The decoder as an NNX module; `layers` holds one `Layer` with stacked parameters."""

    def __init__(self, model_config: architecture.ModelConfig, *, rngs: nnx.Rngs):
        self.model_config, d = model_config, model_config.hidden_size
        self.embed = layers_lib.Embedding(model_config.vocab_size, d, rngs=rngs)

        @nnx.split_rngs(splits=model_config.num_layers)
        @nnx.vmap
        def stack(rngs):
            return Layer(model_config, rngs=rngs)

        self.layers = stack(rngs)
        self.norm = layers_lib.RMSNorm(
            d, model_config.rms_norm_eps, offset=model_config.norm_offset
        )
        if model_config.head == "scalar":
            self.score = layers_lib.Linear(d, 1, layers_lib.INIT_STDDEV, rngs=rngs)
        elif not model_config.tie_embeddings:
            self.head = layers_lib.Linear(
                d, model_config.vocab_size, layers_lib.INIT_STDDEV, rngs=rngs
            )

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        cache: cache_lib.Cache | None = None,
        observe: Observe | None = None,
    ) -> Output:
        """Runs the decoder; see `forward`."""
        model_config = self.model_config
        _check_shapes(model_config, tokens, mask, cache)
        batch, time = tokens.shape
        mask = mask.astype(bool)
        first = jnp.zeros((batch,), jnp.int32) if cache is None else cache.positions
        context = attention.make_context(
            model_config, mask, first, None if cache is None else cache.valid
        )

        def run_layer(x, inputs):
            state, past, window = inputs
            recorder = _Recorder(observe)
            layer = nnx.merge(layer_def, state)
            x, new = layer(x, context.of_layer(window), past, recorder)
            return x, (new, recorder.results)

        x = _to_residual(model_config, self.embed(tokens.reshape(-1)))  # [batch * time, d]
        layer_def, layers = nnx.split(self.layers)
        past = None if cache is None else (cache.keys, cache.values)
        windows = jnp.asarray(model_config.windows, jnp.int32) if model_config.windows else None
        x, (new, observations) = jax.lax.scan(
            _rematerialised(run_layer, model_config.remat), x, (layers, past, windows)
        )
        x = self.norm(x)
        if hasattr(self, "head"):
            recorder = _Recorder(observe)
            recorder("head/in", x)
            observations |= recorder.results
        if cache is not None:
            cache = cache_lib.append_to_cache(cache, *new, mask)
        return Output(x.reshape(batch, time, -1), cache, observations)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns next-token logits; see `heads.logits`."""
        tied = self.model_config.tie_embeddings
        kernel = self.embed.embedding[...].T if tied else self.head.kernel[...]  # [d, vocab]
        result = self._apply(kernel, hidden)
        result = layers_lib.softcap(result, self.model_config.logits_softcap)
        if not self.model_config.absent_ids:
            return result
        absent = np.zeros(self.model_config.vocab_size, bool)
        for first, end in self.model_config.absent_ids:
            absent[first:end] = True
        return jnp.where(jnp.broadcast_to(absent, result.shape), _ABSENT, result)

    def values(self, hidden: jax.Array) -> jax.Array:
        """Applies the scalar head at every token; see `heads.values`."""
        return self._apply(self.score.kernel[...], hidden)[..., 0]

    def _apply(self, kernel, hidden):
        """Computes hidden @ kernel, float32 [..., out]."""
        x = hidden.reshape(-1, hidden.shape[-1]).astype(self.model_config.compute_dtype)
        x = sharding.shard_rows(x)
        result = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        result = sharding.shard_rows(result)
        return result.reshape(*hidden.shape[:-1], -1)


# ------------------------------------------------------------------------------------------------
# The functional surface.
# ------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="model_config")
def init_params(model_config: architecture.ModelConfig, key: jax.Array) -> Params:
    """Draws float32 parameters: normal 0.02, `o` and `down` over sqrt(2 layers), neutral norms."""
    return nnx.to_pure_dict(nnx.state(Transformer(model_config, rngs=nnx.Rngs(params=key))))


def abstract_params(model_config: architecture.ModelConfig) -> Params:
    """Returns the tree of `init_params` as `jax.ShapeDtypeStruct`, without allocating it."""
    return jax.eval_shape(lambda: init_params(model_config, jax.random.key(0)))


def bind(model_config: architecture.ModelConfig, params: Params) -> Transformer:
    """Returns the NNX module that holds these parameters (shared, not copied)."""
    return nnx.merge(_graphdef(model_config), nnx.State(params))


def forward(
    model_config: architecture.ModelConfig,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    cache: cache_lib.Cache | None = None,
    observe: Observe | None = None,
) -> Output:
    """Runs the decoder on a batch of tokens.

    With a cache, the tokens are written to the slots after `cache.length`. The caller makes the
    cache large enough for all tokens to come, since `length` is not known under jit.

    Args:
      model_config: the model.
      params: a nested dict as in the module docstring.
      tokens: [batch, time] int32. The value at padding does not matter.
      mask: [batch, time] bool, False at padding, which may be anywhere. A token's position is the
        number of real tokens before it, the cache's included. Hidden states at padding are finite
        and mean nothing.
      cache: None, or the cache of the tokens before these.
      observe: None, or a function (site, x) -> pytree, which is called on the float32 input
        x [batch * time, in] of every site of `input_sites`, padding included. It runs inside the
        scan over layers, so that only its results are stacked: `lambda site, x: x` gives the raw
        inputs, [layers, batch * time, in] each.

    Returns:
      An `Output`.

    Raises:
      ValueError: the shapes do not agree, or there are more tokens than the model's `max_length` or
        the cache's slots.
    """
    return bind(model_config, params)(tokens, mask, cache, observe)


def embed(model_config: architecture.ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Returns the first layer's input, [batch * time, d] in the compute dtype, of tokens.

    The tokens are int32 [batch, time], and `params` needs `embed` alone. With `run_layer` and
    `final_norm` it makes a forward pass that holds one layer at a time.
    """
    rows = params["embed"]["embedding"][tokens.reshape(-1)]
    return _to_residual(model_config, sharding.shard_rows(rows))


def run_layer(
    model_config: architecture.ModelConfig,
    layer: Params,
    window: int | jax.Array,
    x: jax.Array,
    mask: jax.Array,
    observe: Observe | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Runs one layer of `forward`, without a cache.

    Args:
      model_config: the model.
      layer: the layer's parameters under `layers`, without the leading axis.
      window: its window, 0 for none.
      x: [batch * time, d], the output of the layer before it, or of `embed`.
      mask: bool [batch, time].
      observe: see `forward`.

    Returns:
      [batch * time, d], and the observations by site.
    """
    mask, recorder = mask.astype(bool), _Recorder(observe)
    context = attention.make_context(model_config, mask, jnp.zeros(len(mask), jnp.int32), None)
    module = nnx.merge(_layer_graphdef(model_config), nnx.State(layer))
    narrowed = context.of_layer(jnp.asarray(window, jnp.int32) if model_config.windows else None)
    x, _ = module(x, narrowed, None, recorder)
    return x, recorder.results


def final_norm(model_config: architecture.ModelConfig, params: Params, x: jax.Array) -> jax.Array:
    """Returns the head's input of the last layer's output; `params` needs `norm` alone."""
    norm = layers_lib.RMSNorm(
        model_config.hidden_size, model_config.rms_norm_eps, offset=model_config.norm_offset
    )
    norm.scale = nnx.Param(params["norm"]["scale"])
    return norm(x)


def input_sites(model_config: architecture.ModelConfig) -> dict[str, tuple[str, ...]]:
    """Returns input site -> paths of the kernels that read it.

    A tied head is left out, since projecting it would touch the embedding. A scalar head is left
    out too, since it is no part of a base model's skills.
    """
    sites = {
        "layers/attention/in": tuple(f"layers/attention/{name}/kernel" for name in "qkv"),
        "layers/attention/out": ("layers/attention/o/kernel",),
        "layers/mlp/in": ("layers/mlp/gate/kernel", "layers/mlp/up/kernel"),
        "layers/mlp/out": ("layers/mlp/down/kernel",),
    }
    if model_config.tie_embeddings or model_config.head == "scalar":
        return sites
    return sites | {"head/in": ("head/kernel",)}


# ------------------------------------------------------------------------------------------------
# Pieces.
# ------------------------------------------------------------------------------------------------


class _Recorder:
    """A collector of the results of `observe` at each site of one layer."""

    def __init__(self, observe: Observe | None):
        self.observe = observe
        self.results = {}

    def __call__(self, site: str, x: jax.Array) -> None:
        if self.observe is not None:
            self.results[site] = self.observe(site, x.astype(jnp.float32))


@functools.lru_cache(maxsize=32)
def _graphdef(model_config):
    return nnx.graphdef(nnx.eval_shape(lambda: Transformer(model_config, rngs=nnx.Rngs(0))))


@functools.lru_cache(maxsize=32)
def _layer_graphdef(model_config):
    return nnx.graphdef(nnx.eval_shape(lambda: Layer(model_config, rngs=nnx.Rngs(0))))


def _to_residual(model_config, embedded):
    """Begins the residual stream with embedded tokens, scaled for Gemma."""
    x = embedded.astype(model_config.compute_dtype)
    scale = math.sqrt(model_config.hidden_size)
    return x * jnp.asarray(scale, x.dtype) if model_config.scale_embedding else x


def _rematerialised(run_layer, remat):
    """Wraps `run_layer` in the policy that says which activations gradients keep.

    On CPU a small model's training step is a quarter faster with "layer" than with "none".
    """
    if remat == "none":
        return run_layer
    policy = {
        "layer": None,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[remat]
    return jax.checkpoint(run_layer, prevent_cse=False, policy=policy)


def _check_shapes(model_config, tokens, mask, cache):
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise ValueError(f"tokens {tokens.shape} and mask {mask.shape} must both be [batch, time].")
    batch, time = tokens.shape
    if time > model_config.max_length:
        raise ValueError(
            f"{time} tokens for a model of max_length {model_config.max_length}: shorten the input."
        )
    if cache is not None and (cache.valid.shape[0] != batch or cache.valid.shape[1] < time):
        raise ValueError(
            f"tokens {tokens.shape} do not fit a cache of [batch, slots] {cache.valid.shape}: make "
            "it with empty_cache(config, batch, prompt + new tokens)."
        )
