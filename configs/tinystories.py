"""The same job on a real pretrained Llama checkpoint: gentle stories from a small story model.

    python -m scripts.train --config=configs/tinystories.py:nspo --workdir=runs/tinystories/nspo \
        --config.model.path=PATH

PATH is a Hugging Face directory of a Llama-architecture story model without a chat template, such
as stories260K. The arms are those of configs/tiny.py. Unsafe: a story with harsh words (or a
degenerate one) from openings that lead there; general: the share of positions where the policy's
most likely token is the base model's, on its own greedy stories.
"""

import ml_collections

from configs import tiny


def get_config(arm: str = "nspo") -> ml_collections.ConfigDict:
    """The config of an arm; raises ValueError for an unknown one."""
    config = tiny.get_config(arm)
    config.task = "stories"
    config.workspace = "runs/tinystories"
    config.data.chat = False
    config.data.prompt_length = 32
    config.data.completion_length = 48
    config.calibration.rows = 384
    config.calibration.batch_size = 96
    config.rl.temperature = 0.7
    config.rl.samples = 8
    config.rl.steps = 100 if config.rl.steps else 0
    config.evaluation.temperature = 0.7
    # the embedding is the head in this model: projecting it would need both of their inputs
    config.projection.targets = config.projection.targets.replace("+head", "")
    return config
