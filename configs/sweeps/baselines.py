"""What others do, and NSPO over other policy gradients, on the chat world, three seeds.

python -m scripts.sweep --config=configs/sweeps/baselines.py --workdir=runs/baselines
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """A sweep of the arms that need reward models or preference pairs, beside those that do not."""
    config = tiny_arms.get_config()
    config.arms = "+".join((
        "grpo_tuned", "grpo_kl", "dpo", "ppo_lagrangian",
        "nspo", "nspo_dpo", "nspo_dr_grpo", "nspo_rloo", "nspo_gspo",
    ))  # fmt: skip
    return config
