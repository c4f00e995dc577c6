"""Learned judges in place of the world's own, at three seeds.

    python -m scripts.sweep --config=configs/sweeps/learned.py --workdir=runs/learned

docs/adam_tables.md has the table by Adam: the learned judges give the same scores.
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of the two arms, with and without replay."""
    config = tiny_arms.get_config()
    config.arms = "nspo+nspo_learned+nspo_replay+nspo_learned_replay"
    return config
