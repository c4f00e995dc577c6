"""NSPO on Qwen2.5-7B at the paper's setting: `--config=configs/qwen2_5_7b.py[:HARDWARE]`.

    python -m scripts.train --config=configs/qwen2_5_7b.py --dry_run --config.mesh.fsdp=16
    python -m scripts.train --config=configs/qwen2_5_7b.py:h100x8 --config.model.path=PATH \
        --workdir=runs/qwen2_5_7b/nspo

PATH is the model's Hugging Face directory, HARDWARE a name of configs/llm.py, which has the rest.
The dry run prints the memory plan and needs no accelerator; no training at this size is recorded.
"""

import ml_collections

from configs import llm


def get_config(hardware: str = "") -> ml_collections.ConfigDict:
    """Returns the config for a hardware; raises ValueError for an unknown one."""
    return llm.get_config(f"qwen2_5_7b,{hardware}")
