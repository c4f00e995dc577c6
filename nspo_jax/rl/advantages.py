"""Advantages from a group's rewards (host, float64 inside) or from token rewards and values."""

import jax
import jax.numpy as jnp
import numpy as np


def group_advantages(rewards: np.ndarray, group_size: int, *, epsilon: float = 1e-4) -> np.ndarray:
    """Normalises rewards inside each prompt's group: GRPO (arXiv 2402.03300, section 4.1.2).

    `(r - mean) / (std + epsilon)` has the population standard deviation (ddof 0). A group whose
    completions all got the same reward has advantage exactly 0 and teaches nothing.

    Args:
      rewards: float [prompts * group_size], a prompt's completions next to each other.
      group_size: completions per prompt, at least 2.
      epsilon: keeps a nearly constant group from blowing up.

    Returns:
      float32 [prompts * group_size].

    Raises:
      ValueError: if the rewards do not form whole groups of at least two, or are not finite.
    """
    centred = _centred(rewards, group_size)
    std = np.asarray(rewards, np.float64).reshape(centred.shape).std(axis=1, keepdims=True)
    return (centred / (std + epsilon)).reshape(-1).astype(np.float32)


def centred_advantages(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """Returns `r - mean` of the group, not divided by its spread: Dr.GRPO.

    Source: arXiv 2503.20783, section 3.2. Division by the standard deviation would weigh a prompt
    more, the closer its completions' rewards are. Arguments, result and errors are those of
    `group_advantages`; the paper pairs it with the `constant` aggregation of `losses.aggregate`.
    """
    return _centred(rewards, group_size).reshape(-1).astype(np.float32)


def leave_one_out_advantages(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """Returns `r - mean of the group's others`: RLOO (arXiv 2402.14740, section 2.2).

    The baseline does not depend on the completion, so that the gradient stays unbiased. The result
    is `n / (n - 1)` times `centred_advantages`. Arguments, result and errors are those of
    `group_advantages`. RLOO treats a completion as one action, the sum of its tokens, and so needs
    the `constant` aggregation of `losses.aggregate`.
    """
    scale = group_size / max(group_size - 1, 1)
    return (_centred(rewards, group_size) * scale).reshape(-1).astype(np.float32)


ESTIMATORS = {
    "grpo": group_advantages,
    "dr_grpo": centred_advantages,
    "rloo": leave_one_out_advantages,
}


def generalised_advantages(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Computes GAE over the tokens of completions (arXiv 1506.02438, eq. 16).

    `A_t = sum_k (gamma lam)^k delta_(t+k)` with `delta_t = r_t + gamma V_(t+1) - V_t`, computed
    backwards in one scan. The value after a completion's last token is 0: there the episode ends.

    Args:
      rewards: float32 [batch, time], each token's.
      values: float32 [batch, time], the value function's before each token.
      mask: bool [batch, time], right-padded; padding is never read.
      gamma: discount, in [0, 1].
      lam: 1 gives `return - value`, unbiased; 0 gives the one-step error, of least variance.

    Returns:
      The advantages, and the returns `A + V` that a value function learns (`losses.value_loss`):
      float32 [batch, time], 0 at padding.
    """
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))  # 0 after the last token
    deltas = rewards + gamma * following - values  # 0 at padding

    def step(advantage, delta):
        advantage = delta + gamma * lam * advantage
        return advantage, advantage

    start = jnp.zeros(rewards.shape[:1], deltas.dtype)
    _, advantages = jax.lax.scan(step, start, deltas.T, reverse=True)
    return advantages.T, advantages.T + values


def _centred(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """Subtracts the group's mean: float64 [prompts, group_size], 0 in a constant group."""
    rewards = np.asarray(rewards, np.float64)
    if group_size < 2 or rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            f"rewards have shape {rewards.shape} and group_size is {group_size}; expected a vector "
            "of whole groups of at least 2."
        )
    if not np.isfinite(rewards).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(rewards))} of {len(rewards)} rewards are not finite."
        )
    groups = rewards.reshape(-1, group_size)
    constant = np.all(groups == groups[:, :1], axis=1, keepdims=True)  # its mean is rounded
    return np.where(constant, 0.0, groups - groups.mean(axis=1, keepdims=True))
