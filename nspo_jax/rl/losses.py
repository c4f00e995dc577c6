"""Losses on token log-probabilities: policy gradients, value functions, preferences.

They are pure functions of arrays, most of them [batch, time] with a mask. Values at padding, inf
and NaN included, reach neither the loss nor its gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

AGGREGATIONS = ("sequence_mean", "token_mean", "sequence_sum", "constant")
KL_ESTIMATORS = ("k1", "k2", "k3")


class PolicyLoss(NamedTuple):
    """A loss and its parts for the log, all of them float32 scalars.

    policy: the loss without its penalty.
    clip_share: share of tokens whose ratio a clip cut off (GSPO: of sequences).
    kl: k3 estimate to the reference, whichever estimator the loss has.
    The latter two are means over sequences of means over tokens.
    """

    loss: jax.Array
    policy: jax.Array
    clip_share: jax.Array
    kl: jax.Array


class PreferenceLoss(NamedTuple):
    """A loss on pairs and its parts for the log, all of them float32 scalars.

    margin: mean implicit reward of the chosen answer less the rejected one's.
    accuracy: share of pairs with a positive margin.
    """

    loss: jax.Array
    margin: jax.Array
    accuracy: jax.Array


def sequence_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Averages over each sequence's tokens, then over sequences; an empty one counts as 0."""
    lengths = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return jnp.mean(jnp.sum(jnp.where(mask, values, 0.0), axis=-1) / lengths)


def aggregate(
    values: jax.Array, mask: jax.Array, how: str, tokens: jax.Array | None = None
) -> jax.Array:
    """Aggregates all tokens' values to one number.

    Args:
      values: float32 [batch, time].
      mask: bool [batch, time].
      how: `sequence_mean` (GRPO, arXiv 2402.03300): a long answer's token weighs less;
        `token_mean` (DAPO, arXiv 2503.14476): all tokens of the batch weigh alike;
        `sequence_sum` (RLOO, arXiv 2402.14740): the sum over a sequence's tokens, mean over
        sequences;
        `constant` (Dr.GRPO, arXiv 2503.20783): the sum over tokens divided by batch * time, so that
        a token's weight depends on no length.
      tokens: the divisor of `token_mean`; the mask's count when not given. A part of a batch is
        given the batch's mean count of a part: the mean over parts is then the batch's token mean.

    Raises:
      ValueError: for another `how`.
    """
    if how == "sequence_mean":
        return sequence_mean(values, mask)
    if how == "sequence_sum":
        return jnp.mean(jnp.sum(jnp.where(mask, values, 0.0), axis=-1))
    if how == "token_mean":
        count = jnp.maximum(jnp.sum(mask), 1) if tokens is None else tokens
    elif how == "constant":
        count = mask.size
    else:
        raise ValueError(f"aggregation is {how!r}; expected one of {', '.join(AGGREGATIONS)}.")
    return jnp.sum(jnp.where(mask, values, 0.0)) / count


LARGEST_LOG_RATIO = 20.0


def bounded_exp(x: jax.Array) -> jax.Array:
    """Computes `e^x`, continued above `LARGEST_LOG_RATIO` by its tangent there.

    So value and gradient stay finite. Every clip cuts off a ratio of e^20. Where no clip acts, a
    gradient that overflows would make the whole batch's NaN, and one that vanishes would leave the
    token where it is.
    """
    inside = jnp.minimum(x, LARGEST_LOG_RATIO)
    return jnp.exp(inside) * (1.0 + (x - inside))


def kl_estimate(
    logprobs: jax.Array, reference_logprobs: jax.Array, mask: jax.Array, estimator: str
) -> jax.Array:
    """An estimate of each token's KL(policy || reference) from the token that the policy drew.

    With `d = log reference - log policy` (Schulman, "Approximating KL divergence", 2020), and what
    each one does *inside a loss*, where the gradient goes through `d` and not through the draw:

    * k1, `-d`: unbiased. Its gradient is that of log policy, whose expectation is 0 whatever the
      reference: it adds noise and holds nothing back. It belongs into rewards, not into losses.
    * k2, `d^2 / 2`: biased as a value, but its expected gradient is exactly the gradient of
      KL(policy || reference).
    * k3, `e^d - d - 1` (GRPO's): unbiased, never negative, of low variance. Its expected gradient
      is that of KL(reference || policy), equal to k2's to first order near the reference; it grows
      without bound (e^d) for a token that the policy has become far less likely to draw.

    All of that holds for tokens drawn from the policy itself, each given its prefix.

    Args:
      logprobs: float32 [batch, time].
      reference_logprobs: float32 [batch, time].
      mask: bool [batch, time].
      estimator: k1, k2 or k3.

    Returns:
      float32 [batch, time], 0 at padding.
    """
    difference = jnp.where(mask, reference_logprobs - logprobs, 0.0)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return jnp.square(difference) / 2.0
    if estimator == "k3":
        return bounded_exp(difference) - difference - 1.0
    raise ValueError(f"kl_estimator is {estimator!r}; expected one of {', '.join(KL_ESTIMATORS)}.")


def importance_weights(
    logprobs: jax.Array, sampler_logprobs: jax.Array, mask: jax.Array, cap: float
) -> jax.Array:
    """Computes truncated importance weights `min(policy / sampler, cap)`, without a gradient.

    They correct for a sampler whose probabilities are not the trainer's: another kernel, precision
    or engine, or older weights (Yao et al., "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training", 2025). Truncation bounds the variance, at the price of a bias for
    tokens that the sampler found `cap` times less likely.

    Args:
      logprobs: float32 [batch, time], the trainer's, of the policy at the ratio's denominator.
      sampler_logprobs: float32 [batch, time], the sampler's own.
      mask: bool [batch, time].
      cap: the largest weight, such as 2.

    Returns:
      float32 [batch, time], 1 at padding.
    """
    weights = bounded_exp(jnp.where(mask, logprobs - sampler_logprobs, 0.0))
    return jax.lax.stop_gradient(jnp.minimum(weights, cap))


def grpo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    **options,
) -> PolicyLoss:
    """Computes the clipped surrogate with a ratio a token: PPO, GRPO (arXiv 2402.03300, eq. 3).

    Dr.GRPO and RLOO are this loss with their own `advantages` and the `constant` aggregation.

    Args:
      logprobs: float32 [batch, time], under the policy being trained.
      old_logprobs: float32 [batch, time], under the policy that sampled.
      advantages: float32 [batch], or [batch, time] for each token's own (GAE).
      mask: bool [batch, time], completion tokens including the stop token.
      **options: those of `clipped_loss`.
    """
    ratio = bounded_exp(jnp.where(mask, logprobs - old_logprobs, 0.0))
    return clipped_loss(ratio, logprobs, advantages, mask, **options)


def gspo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    **options,
) -> PolicyLoss:
    """Computes the surrogate with one ratio a sequence: GSPO (arXiv 2507.18071, section 4).

    The ratio is the geometric mean of the tokens' ratios. As in the paper's section 4.3, every
    token's ratio has the sequence's value, so that a clip cuts off whole sequences, and the
    gradient of its own log-probability times that value. With `sequence_mean` and one advantage a
    sequence, loss and gradient are the sequence form's.

    The mean over tokens makes ratios differ from 1 by far less than a token's: the paper clips to
    [1 - 3e-4, 1 + 4e-4] on long answers. Arguments are those of `grpo_loss`.
    """
    lengths = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    log_ratios = jnp.where(mask, logprobs - old_logprobs, 0.0)
    sequence = bounded_exp(jnp.sum(log_ratios, axis=-1, keepdims=True) / lengths)
    own = jnp.exp(log_ratios - jax.lax.stop_gradient(log_ratios))  # 1, with a token's gradient
    return clipped_loss(
        jax.lax.stop_gradient(sequence) * own, logprobs, advantages, mask, **options
    )


LOSSES = {"grpo": grpo_loss, "gspo": gspo_loss}


def clipped_loss(
    ratio: jax.Array,
    logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float = 0.2,
    clip_high: float = 0.0,
    dual_clip: float = 0.0,
    aggregation: str = "sequence_mean",
    tokens: jax.Array | None = None,
    weights: jax.Array | None = None,
    kl_coefficient: float = 0.0,
    kl_estimator: str = "k3",
    reference_logprobs: jax.Array | None = None,
) -> PolicyLoss:
    """Aggregates `-min(ratio A, clip(ratio) A)` of each token and adds a KL penalty.

    Args:
      ratio: float32 [batch, time], policy / old policy; finite at padding too.
      logprobs: float32 [batch, time], under the policy being trained.
      advantages: float32 [batch] or [batch, time].
      mask: bool [batch, time].
      clip: the ratio is clipped to [1 - clip, 1 + clip_high].
      clip_high: 0 means the value of `clip`. A larger one lets rare tokens rise (DAPO, arXiv
        2503.14476, eq. 10).
      dual_clip: where the advantage is negative, the surrogate is at least `dual_clip * A`
        (arXiv 1912.09729): a ratio above `dual_clip`, which is more than 1, has no gradient.
        0 turns it off.
      aggregation: see `aggregate`.
      tokens: see `aggregate`.
      weights: float32 [batch, time]; they scale each token's surrogate, not its penalty; see
        `importance_weights`.
      kl_coefficient: weight of the penalty. NSPO uses 0.
      kl_estimator: see `kl_estimate`.
      reference_logprobs: float32 [batch, time]; needed when kl_coefficient > 0.
    """
    scale = advantages if advantages.ndim == 2 else advantages[:, None]
    scale = jnp.where(mask, scale, 0.0)
    free = ratio * scale
    surrogate = jnp.minimum(free, jnp.clip(ratio, 1.0 - clip, 1.0 + (clip_high or clip)) * scale)
    if dual_clip:
        surrogate = jnp.where(scale < 0, jnp.maximum(surrogate, dual_clip * scale), surrogate)
    cut = sequence_mean((surrogate != free).astype(jnp.float32), mask)
    if weights is not None:
        surrogate = surrogate * weights
    policy = aggregate(-surrogate, mask, aggregation, tokens)
    loss, kl = policy, jnp.zeros(())
    if reference_logprobs is not None:
        kl = sequence_mean(kl_estimate(logprobs, reference_logprobs, mask, "k3"), mask)
        penalty = kl_estimate(logprobs, reference_logprobs, mask, kl_estimator)
        loss += kl_coefficient * aggregate(penalty, mask, aggregation, tokens)
    return PolicyLoss(loss, policy, cut, kl)


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, *, clip: float
) -> jax.Array:
    """Computes PPO's clipped value loss, as the released code of Safe RLHF (arXiv 2310.12773).

    `max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2` is averaged over each
    sequence's tokens, then over sequences.

    Args:
      values: float32 [batch, time], of the value function being trained.
      old_values: float32 [batch, time], the values that the advantages were computed from.
      returns: float32 [batch, time], from `advantages.generalised_advantages`.
      mask: bool [batch, time].
      clip: in units of values; Safe RLHF has 5.

    Returns:
      float32 scalar.
    """
    values, old_values, returns = (jnp.where(mask, x, 0.0) for x in (values, old_values, returns))
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    worse = jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
    return 0.5 * sequence_mean(worse, mask)


def dpo_loss(
    chosen: jax.Array,
    rejected: jax.Array,
    reference_chosen: jax.Array,
    reference_rejected: jax.Array,
    *,
    beta: float,
) -> PreferenceLoss:
    """Computes the loss of direct preference optimization (arXiv 2305.18290, eq. 7).

    `-log sigmoid(beta (log p(chosen) / ref(chosen) - log p(rejected) / ref(rejected)))`.

    Args:
      chosen: float32 [batch], sums of the answers' token log-probabilities under the policy.
      rejected: float32 [batch], likewise.
      reference_chosen: float32 [batch], the same sums under the reference.
      reference_rejected: float32 [batch], likewise.
      beta: the strength that holds the policy to the reference.
    """
    margins = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    loss = jnp.mean(-jax.nn.log_sigmoid(margins))
    return PreferenceLoss(loss, jnp.mean(margins), jnp.mean((margins > 0).astype(jnp.float32)))
