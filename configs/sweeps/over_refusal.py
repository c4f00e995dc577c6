"""Over-refusal against the share of benign prompts in the RL batch, at three seeds.

    python -m scripts.sweep --config=configs/sweeps/over_refusal.py --workdir=runs/over_refusal

docs/adam_tables.md has the result by Adam: over-refusal falls from 15.8 to 3.0 % with two benign
prompts beside 16 harmful ones, and to 1.2 % with eight, at equal safety.
"""

import ml_collections

from configs.sweeps import tiny_arms

GRID = {"data.benign_fraction": [0.0, 0.125, 0.25, 0.5, 1.0]}


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of one arm, whose refusals of benign prompts count against it."""
    config = tiny_arms.get_config()
    config.arms = "nspo_over_refusal"
    config.grid = tiny_arms.make_grid(GRID)
    return config
