"""Advantages from rewards."""

import numpy as np


def group_advantages(rewards: np.ndarray, group_size: int, *, epsilon: float = 1e-4) -> np.ndarray:
    """GRPO: rewards normalised inside each prompt's group (arXiv 2402.03300, section 4.1.2).

    `(r - mean) / (std + epsilon)` with the population standard deviation (ddof 0). A group whose
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
    centred = groups - groups.mean(axis=1, keepdims=True)
    normalised = centred / (groups.std(axis=1, keepdims=True) + epsilon)
    return normalised.reshape(-1).astype(np.float32)
