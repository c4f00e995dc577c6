"""Other methods, and NSPO over other policy gradients, on the chat world at three seeds.

    python -m scripts.sweep --config=configs/sweeps/baselines.py --workdir=runs/baselines

docs/adam_tables.md has the table by Adam: every projected arm keeps 99.5 % general or more and ends
below 1 % unsafe, the others keep 67.7 to 96.7 % at 2.3 to 5.5 % unsafe.
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of other methods and of NSPO over other policy gradients."""
    config = tiny_arms.get_config()
    config.arms = "+".join((
        "grpo_tuned", "grpo_kl", "dpo", "ppo_lagrangian",
        "nspo", "nspo_dpo", "nspo_dr_grpo", "nspo_rloo", "nspo_gspo",
    ))  # fmt: skip
    return config
