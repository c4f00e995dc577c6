"""A run on an open language model: `--config=configs/llm.py:SIZE`, NSPO at the paper's setting.

    python -m scripts.train --config=configs/llm.py:qwen2_5_7b --config.model.path=PATH \
        --workdir=runs/qwen2_5_7b/nspo

SIZE is a name of `nspo_jax.models.PRESETS`; PATH a Hugging Face directory of that model, base or
instruct, with a chat template. The prompts are still the chat world's: public safety datasets are
not built in yet. Batch, lengths, learning rate and threshold are the paper's (arXiv 2512.11391):
320 prompts x 5 completions, minibatches of 160 prompts, 512 + 512 tokens, lr 1e-6, alpha 5e-4.
"""

import ml_collections

from configs import default
from nspo_jax import models


def get_config(size: str = "qwen2_5_7b") -> ml_collections.ConfigDict:
    """The config of a size.

    Raises:
      ValueError: for an unknown size.
    """
    if size not in models.PRESETS:
        raise ValueError(f"The size is {size!r}; expected one of {', '.join(models.PRESETS)}.")
    config = default.get_config()
    config.workspace = f"runs/{size}"
    config.model.preset = size
    config.model.compute_dtype = "bfloat16"
    config.data.prompt_length = 512
    config.data.completion_length = 512
    config.calibration.batch_size = 8
    config.calibration.rank_rule = "relative_max(5e-4)"
    if models.PRESETS[size].tie_embeddings:  # the head is the embedding: not to be projected
        config.projection.targets = "mlp+attention"
    config.optimizer.learning_rate = 1e-6
    config.rl.prompts = 320
    config.rl.minibatches = 2
    config.rl.steps = 34  # about 11 thousand prompts, once
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
