"""The first table of docs/results.md: NSPO and other arms on ten worlds with a base model each.

    python -m scripts.sweep --config=configs/sweeps/headline.py --workdir=runs/headline

At the median `nspo` ends at 0.0 % unsafe and 99.6 % general, `grpo_tuned` at 1.0 and 99.2 %, `grpo`
at 0.0 and 79.7 %.
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of the arms that carry the claim, at ten seeds."""
    config = tiny_arms.get_config()
    config.arms = "+".join((
        "base", "grpo", "grpo_tuned", "grpo_stopped", "dpo", "random",
        "nspo", "nspo_rmsprop", "nspo_adam", "grpo_tuned_replay", "nspo_replay",
    ))  # fmt: skip
    config.seeds = "+".join(map(str, range(10)))
    return config
