"""Over-refusal against the share of benign prompts in the RL batch, three seeds.

python -m scripts.sweep --config=configs/sweeps/over_refusal.py --workdir=runs/over_refusal
"""

import ml_collections

from configs.sweeps import tiny_arms

GRID = {"data.benign_fraction": [0.0, 0.125, 0.25, 0.5, 1.0]}


def get_config() -> ml_collections.ConfigDict:
    """A sweep of one arm, whose benign prompts are judged by whether they are refused."""
    config = tiny_arms.get_config()
    config.arms = "nspo_over_refusal"
    config.grid = tiny_arms.make_grid(GRID)
    return config
