"""A grid of rank rules and learning rates on the chat world, at one seed.

    python -m scripts.sweep --config=configs/sweeps/tiny_grid.py --workdir=runs/tiny_grid

Every arm runs at every combination of the values in GRID. A run is called, for example,
nspo,rank_rule=energy(0.05),learning_rate=0.001.
"""

import ml_collections

from configs.sweeps import tiny_arms

GRID = {
    "calibration.rank_rule": ["energy(0.03)", "energy(0.05)", "energy(0.1)"],
    "optimizer.learning_rate": [3e-4, 1e-3],
}


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of one arm over the grid."""
    config = tiny_arms.get_config()
    config.arms = "nspo"
    config.seeds = "0"
    config.grid = tiny_arms.make_grid(GRID)
    return config
