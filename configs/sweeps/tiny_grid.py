"""A grid on the chat world: how much is left free, and how fast it is learned, at one seed.

    python -m scripts.sweep --config=configs/sweeps/tiny_grid.py --workdir=runs/tiny_grid

Every arm runs at every combination of the values in GRID; a run is called
nspo,rank_rule=energy(0.05),learning_rate=0.001.
"""

import ml_collections

from configs.sweeps import tiny_arms

GRID = {
    "calibration.rank_rule": ["energy(0.03)", "energy(0.05)", "energy(0.1)"],
    "optimizer.learning_rate": [3e-4, 1e-3],
}


def get_config() -> ml_collections.ConfigDict:
    """A sweep of one arm."""
    config = tiny_arms.get_config()
    config.arms = "nspo"
    config.seeds = "0"
    config.grid = tiny_arms.make_grid(GRID)
    return config
