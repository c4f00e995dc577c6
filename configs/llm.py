"""A run on an open language model: `--config=configs/llm.py:SIZE[,HARDWARE]`, at NSPO's setting.

    python -m scripts.train --config=configs/llm.py:qwen2_5_7b,h100x8 --config.model.path=PATH \
        --workdir=runs/qwen2_5_7b/nspo

SIZE is a name of `nspo_jax.models.PRESETS`, which the directory is compared with, or `any`, which
takes every directory and leaves the head unprojected, as it may be tied to the embedding. HARDWARE
is a name of this file, whose fields make a model of 7 or 8 billion parameters fit there
(`--dry_run` counts its memory); without it the run does everything at once, on all devices. PATH
is a Hugging Face directory of that model, base or instruct, with a chat template. The prompts are
the chat world's; configs/safety.py has those of public safety datasets. Batch, lengths, learning
rate and threshold are the paper's (arXiv 2512.11391): 320 prompts x 5 completions, minibatches of
160 prompts, 512 + 512 tokens, lr 1e-6, alpha 5e-4. docs/scaling.md has the memory plans; no result
at this size is recorded.
"""

import ml_collections

from configs import default
from nspo_jax import models

ANY = "any"  # a directory of any size
_EIGHT = {
    "mesh.fsdp": 8, "rl.microbatches": 4, "rl.rollout_batches": 4, "evaluation.batches": 10,
}  # fmt: skip
HARDWARE: dict[str, dict] = {
    "h100x8": _EIGHT,  # one node of eight H100 with 80 GB
    "v5p_16": _EIGHT,  # 16 TensorCores are eight chips, which jax counts as eight devices
    # One H200 trains and projects the MLP; all else is frozen. The base and a change of it do not
    # fit together, so weights are trained, and rounding takes part of an update out of the null
    # space.
    "h200": {
        "optimizer.master": "weights",
        "mesh.fsdp": 1, "mesh.gather_for_rollouts": False, "rl.microbatches": 160,
        "rl.rollout_batches": 16, "evaluation.batches": 25, "projection.targets": "mlp",
        "model.frozen_dtype": "bfloat16",
    },
}  # fmt: skip


def get_config(name: str = "qwen2_5_7b") -> ml_collections.ConfigDict:
    """Returns the config of "SIZE" or "SIZE,HARDWARE".

    Raises:
      ValueError: for an unknown size or hardware.
    """
    size, _, hardware = name.partition(",")
    if hardware and hardware not in HARDWARE:
        raise ValueError(
            f"The hardware is {hardware!r}; expected one of {', '.join(HARDWARE)}, or none."
        )
    if size not in (ANY, *models.PRESETS):
        raise ValueError(
            f"The size is {size!r}; expected one of {', '.join(models.PRESETS)}, or {ANY}."
        )
    config = default.get_config()
    config.workspace = f"runs/{size}"
    config.model.preset = "" if size == ANY else size
    config.model.compute_dtype = "bfloat16"
    config.data.prompt_length = 512
    config.data.completion_length = 512
    config.calibration.batch_size = 8
    config.calibration.rank_rule = "relative_max(5e-4)"
    # a tied head is the embedding and cannot be projected
    if size == ANY or models.PRESETS[size].tie_embeddings:
        config.projection.targets = "mlp+attention"
    config.optimizer.learning_rate = 1e-6
    config.rl.prompts = 320
    config.rl.minibatches = 2
    config.rl.steps = 34  # the run sees about 11 thousand prompts once
    config.reward_training.dataset = "pku_safe_rlhf"
    config.reward_training.epochs = 2
    config.reward_training.learning_rate = 1e-5
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.update_from_flattened_dict(HARDWARE.get(hardware, {}))
    return config
