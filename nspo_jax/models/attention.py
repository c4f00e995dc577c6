"""Grouped-query attention: rotary positions, causal and windowed masks, the key-value cache."""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from nspo_jax.models import architecture, layers

_MASKED = -1e30  # it is finite, so a row with nothing to attend to has no NaN, forward or backward


class Context(NamedTuple):
    """The inputs of attention besides the activations; one for all layers.

    Attributes:
      mask: bool [batch, time, time], True where a new token may see another.
      distance: int32 [batch, time, time], the number of real tokens back to the other.
      rotation: (cos, sin) of the new tokens, each float32 [batch, time, 1, head_dim / 2].
      local_rotation: the same for windowed layers; None if all layers share one.
      past_mask: bool [batch, time, slots], True where a new token may see a cached one; None
        without a cache.
      past_distance: int32 [batch, time, slots].
    """

    mask: jax.Array
    distance: jax.Array
    rotation: tuple[jax.Array, jax.Array]
    local_rotation: tuple[jax.Array, jax.Array] | None
    past_mask: jax.Array | None
    past_distance: jax.Array | None

    def of_layer(self, window: jax.Array | None) -> "Context":
        """Narrows to a layer's window (int32 scalar, 0 for none), and takes its rotation."""
        if window is None:
            return self
        full = window == 0
        rotation = self.rotation
        if self.local_rotation is not None:
            rotation = jax.tree.map(
                lambda a, b: jnp.where(full, a, b), rotation, self.local_rotation
            )
        past_mask = self.past_mask
        if past_mask is not None and self.past_distance is not None:
            past_mask = past_mask & (full | (self.past_distance < window))
        mask = self.mask & (full | (self.distance < window))
        return self._replace(mask=mask, rotation=rotation, past_mask=past_mask)


def make_context(
    model_config: architecture.ModelConfig,
    mask: jax.Array,
    first: jax.Array,
    past_valid: jax.Array | None,
) -> Context:
    """Makes the context of new tokens.

    Args:
      model_config: the model.
      mask: bool [batch, time], the real ones among the new tokens.
      first: int32 [batch], the position of each row's first real new token.
      past_valid: bool [batch, slots], the cache's real tokens; None without a cache.
    """
    time = mask.shape[1]
    positions = first[:, None] + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1  # [batch, time]
    past_mask = past_distance = None
    if past_valid is not None:
        past_positions = jnp.cumsum(past_valid, axis=1, dtype=jnp.int32) - 1  # [batch, slots]
        past_distance = positions[:, :, None] - past_positions[:, None, :]
        past_mask = jnp.broadcast_to(past_valid[:, None, :], past_distance.shape)
    local = None
    if model_config.local_rope_theta is not None:
        local = _rotation(
            _frequencies(model_config.local_rope_theta, model_config.head_dim), positions
        )
    return Context(
        mask=mask[:, None, :] & jnp.tril(jnp.ones((1, time, time), bool)),
        distance=positions[:, :, None] - positions[:, None, :],
        rotation=_rotation(
            _scale(
                _frequencies(model_config.rope_theta, model_config.head_dim),
                model_config.rope_scaling,
            ),
            positions,
        ),
        local_rotation=local,
        past_mask=past_mask,
        past_distance=past_distance,
    )


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, model_config: architecture.ModelConfig, *, rngs: nnx.Rngs):
        c, d, stddev = model_config, model_config.hidden_size, layers.INIT_STDDEV
        self.kv_heads, self.head_dim = c.num_kv_heads, c.head_dim
        self.scale = (c.query_scale or c.head_dim) ** -0.5
        self.softcap = c.attention_softcap
        bias = c.qkv_bias
        self.q = layers.Linear(d, c.num_heads * c.head_dim, stddev, bias=bias, rngs=rngs)
        self.k = layers.Linear(d, c.num_kv_heads * c.head_dim, stddev, bias=bias, rngs=rngs)
        self.v = layers.Linear(d, c.num_kv_heads * c.head_dim, stddev, bias=bias, rngs=rngs)
        self.o = layers.Linear(
            c.num_heads * c.head_dim, d, layers.residual_stddev(c.num_layers), rngs=rngs
        )
        if c.qk_norm:
            self.q_norm = layers.RMSNorm(c.head_dim, c.rms_norm_eps, offset=c.norm_offset)
            self.k_norm = layers.RMSNorm(c.head_dim, c.rms_norm_eps, offset=c.norm_offset)

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        past: tuple[jax.Array, jax.Array] | None,
        observe: Callable[[str, jax.Array], None],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Maps [batch * time, d] to [batch * time, d], and returns the new keys and values too.

        `past` is None or (keys, values), each [batch, slots, kv_heads, head_dim].
        """
        batch, time, _ = context.mask.shape
        observe("layers/attention/in", x)
        q = self.q(x).reshape(batch, time, -1, self.head_dim)  # [batch, time, heads, head_dim]
        k = self.k(x).reshape(batch, time, self.kv_heads, self.head_dim)
        v = self.v(x).reshape(batch, time, self.kv_heads, self.head_dim)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = _rotate(q, context.rotation), _rotate(k, context.rotation)
        mixed = self._attend(q, k, v, context, past)
        mixed = mixed.reshape(batch * time, -1)  # [batch * time, heads * head_dim]
        observe("layers/attention/out", mixed)
        return self.o(mixed), (k, v)

    def _attend(self, q, k, v, context, past):
        """Attends with a soft cap to two blocks of keys, so that no token copies the cache.

        Sampler and trainer both call it, so in bfloat16 they round alike.
        """
        batch, time, _, size = q.shape
        grouped = q.reshape(batch, time, self.kv_heads, -1, size)  # [.., kv_heads, group, head_dim]
        scores = self._attention_scores(
            grouped, k, context.mask
        )  # [batch, kv_heads, group, time, time]
        if past is None:
            mixed = _mix(jax.nn.softmax(scores, axis=-1), v)
        else:
            keys, values = past
            old = self._attention_scores(grouped, keys, context.past_mask)
            weights = jax.nn.softmax(jnp.concatenate([old, scores], axis=-1), axis=-1)
            slots = keys.shape[1]
            mixed = _mix(weights[..., :slots], values) + _mix(weights[..., slots:], v)
        return mixed.astype(q.dtype)

    def _attention_scores(self, q, k, mask):
        """Returns masked attention scores, float32 [batch, kv_heads, group, time, key]."""
        scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
        scores = layers.softcap(scores * self.scale, self.softcap)
        return jnp.where(mask[:, None, None], scores, _MASKED)


def _mix(weights, values):
    """Returns weighted values, float32 [batch, time, kv_heads, group, head_dim]."""
    weights = weights.astype(values.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, values, preferred_element_type=jnp.float32)


def _frequencies(theta, head_dim):
    """Returns rotary frequencies, float32 [head_dim / 2]."""
    return 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def _scale(frequencies, scaling):
    """Stretches frequencies to a longer context, with transformers' three bands of `llama3`."""
    if scaling is None:
        return frequencies
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    wavelengths = 2 * jnp.pi / frequencies
    turns = scaling.original_length / wavelengths  # the original context has so many turns
    smooth = (turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)  # long wavelengths have 0, short ones 1
    return (1 - smooth) * slow + smooth * frequencies


def _rotation(frequencies, positions):
    """Returns cos and sin of the rotary angles, float32 [batch, time, 1, head_dim / 2]."""
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x, rotation):
    """Rotates the last axis, first half paired with second half as in transformers."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
