"""The arms of `./scripts/demo.sh`: one seed, the six that tell the story and two with replay.

python -m scripts.sweep --config=configs/sweeps/demo.py --workdir=runs/demo
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """A short sweep."""
    config = tiny_arms.get_config()
    config.arms = "base+grpo+grpo_tuned+nspo_adam+random+nspo+nspo_replay+grpo_tuned_replay"
    config.seeds = "0"
    return config
