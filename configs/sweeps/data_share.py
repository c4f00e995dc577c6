"""NSPO on shares of the harmful prompts, of which the paper takes 40 %, at three seeds.

    python -m scripts.sweep --config=configs/sweeps/data_share.py --workdir=runs/data_share

docs/adam_tables.md has the table by Adam: 2 % of the prompts do as well as all of them.
"""

import ml_collections

from configs.sweeps import tiny_arms

GRID = {
    "data.train_split": [
        "train[:2%]", "train[:5%]", "train[:10%]", "train[:20%]", "train[:40%]", "train",
    ]
}  # fmt: skip


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of one arm over shares of the training split."""
    config = tiny_arms.get_config()
    config.arms = "nspo"
    config.grid = tiny_arms.make_grid(GRID)
    return config
