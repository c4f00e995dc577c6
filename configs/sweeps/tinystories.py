"""GRPO and NSPO on a real pretrained story model, three seeds: docs/results.md has the table.

    python -m scripts.sweep --config=configs/sweeps/tinystories.py --workdir=runs/tinystories \
        --config.model_path=PATH

PATH is a Hugging Face directory; see configs/tinystories.py.
"""

import ml_collections

from configs.sweeps import tiny_arms


def get_config() -> ml_collections.ConfigDict:
    """A sweep of the story arms that need no replay."""
    config = tiny_arms.get_config()
    config.config = "configs/tinystories.py"
    config.arms = "base+grpo+grpo_tuned+nspo"
    return config
