"""The sweep of `./scripts/demo.sh`: the six arms that tell the story and two with replay, one seed.

    python -m scripts.sweep --config=configs/sweeps/demo.py --workdir=runs/demo

It takes 2 to 4 minutes on two CPU cores and ends with the table that README.md shows: `nspo` at
1.0 % unsafe and 99.6 % general, `grpo` at 0.0 and 79.8 %.
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of the demo."""
    config = tiny_arms.get_config()
    config.arms = "base+grpo+grpo_tuned+nspo_adam+random+nspo+nspo_replay+grpo_tuned_replay"
    config.seeds = "0"
    return config
