"""GRPO and NSPO on a real pretrained story model, at three seeds.

    python -m scripts.sweep --config=configs/sweeps/tinystories.py --workdir=runs/tinystories \
        --config.model_path=PATH

PATH is a Hugging Face directory; see configs/tinystories.py. The sweep takes 8 minutes on two CPU
cores. docs/results.md has the table by Adam: `nspo` at 2.3 % unsafe and 93.8 % general,
`grpo_tuned` at 4.0 and 90.5 %.
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of the story arms that need no replay."""
    config = tiny_arms.get_config()
    config.config = "configs/tinystories.py"
    config.arms = "base+grpo+grpo_tuned+nspo"
    return config
