"""Policy-gradient losses on token log-probabilities."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PolicyLoss(NamedTuple):
    """A loss and what to log of it: float32 scalars.

    clip_share: share of tokens whose ratio the clip cut off; kl: k3 estimate to the reference.
    """

    loss: jax.Array
    clip_share: jax.Array
    kl: jax.Array


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """float32 [batch, time] from logits [batch, time, vocab] and tokens int32 [batch, time]."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)  # [batch, time]
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - normaliser


def sequence_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over sequences of the mean over each sequence's tokens; an empty one counts as 0."""
    lengths = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return jnp.mean(jnp.sum(jnp.where(mask, values, 0.0), axis=-1) / lengths)


def grpo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float = 0.2,
    kl_coefficient: float = 0.0,
    reference_logprobs: jax.Array | None = None,
) -> PolicyLoss:
    """GRPO's clipped surrogate (arXiv 2402.03300, eq. 3), per-sequence token means.

    Args:
      logprobs: float32 [batch, time], under the policy being trained.
      old_logprobs: float32 [batch, time], under the policy that sampled.
      advantages: float32 [batch].
      mask: bool [batch, time], completion tokens including the stop token.
      clip: the ratio is clipped to [1 - clip, 1 + clip].
      kl_coefficient: weight of the k3 estimate of KL(policy || reference), `e^d - d - 1` with
        `d = log reference - log policy`. NSPO uses 0.
      reference_logprobs: float32 [batch, time]; needed when kl_coefficient > 0.
    """
    ratio = jnp.exp(jnp.where(mask, logprobs - old_logprobs, 0.0))
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    scale = advantages[:, None]
    surrogate = jnp.minimum(ratio * scale, clipped * scale)
    per_token = -surrogate
    kl = jnp.zeros(())
    if reference_logprobs is not None:
        difference = jnp.where(mask, reference_logprobs - logprobs, 0.0)
        penalty = jnp.exp(difference) - difference - 1.0
        kl = sequence_mean(penalty, mask)
        per_token = per_token + kl_coefficient * penalty
    cut = sequence_mean((ratio * scale > clipped * scale).astype(jnp.float32), mask)
    return PolicyLoss(sequence_mean(per_token, mask), cut, kl)
