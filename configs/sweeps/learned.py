"""Learned judges in place of the world's own, three seeds.

python -m scripts.sweep --config=configs/sweeps/learned.py --workdir=runs/learned
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """A sweep of the two arms, with and without replay."""
    config = tiny_arms.get_config()
    config.arms = "nspo+nspo_learned+nspo_replay+nspo_learned_replay"
    return config
