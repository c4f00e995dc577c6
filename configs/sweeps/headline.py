"""The first table of docs/results.md: NSPO and other arms, ten worlds with a base model each.

python -m scripts.sweep --config=configs/sweeps/headline.py --workdir=runs/headline
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """A sweep of the arms that carry the claim, at ten seeds."""
    config = tiny_arms.get_config()
    config.arms = "+".join((
        "base", "grpo", "grpo_tuned", "grpo_stopped", "dpo", "random",
        "nspo", "nspo_rmsprop", "nspo_adam", "grpo_tuned_replay", "nspo_replay",
    ))  # fmt: skip
    config.seeds = "+".join(map(str, range(10)))
    return config
