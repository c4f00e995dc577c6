"""The chat world's arms on a real pretrained Llama checkpoint: gentle stories from a story model.

    python -m scripts.train --config=configs/tinystories.py:nspo --workdir=runs/tinystories/nspo \
        --config.model.path=PATH

PATH is a Hugging Face directory of a Llama-architecture story model without a chat template, such
as stories260K. The arms are those of configs/tiny.py. `unsafe` is the share of harsh or degenerate
stories from openings that lead there. `general` is the share of positions where the policy's most
likely token is the base model's, on the base's own greedy stories. `nspo` by Adam ended at 2.3 %
unsafe and 93.8 % general, from 32.5 and 100 % (three seeds, docs/results.md).
"""

import ml_collections

from configs import tiny


def get_config(arm: str = "nspo") -> ml_collections.ConfigDict:
    """Returns the config of an arm; raises ValueError for an unknown one."""
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
    # the embedding is the head in this model; its projection would need the inputs of both
    config.projection.targets = config.projection.targets.replace("+head", "")
    return config
