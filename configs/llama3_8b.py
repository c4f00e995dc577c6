"""NSPO on Llama-3-8B at the paper's setting: `--config=configs/llama3_8b.py[:HARDWARE]`.

    python -m scripts.train --config=configs/llama3_8b.py --dry_run --config.mesh.fsdp=16
    python -m scripts.train --config=configs/llama3_8b.py:h100x8 --config.model.path=PATH \
        --workdir=runs/llama3_8b/nspo

PATH is the model's Hugging Face directory, HARDWARE a name of configs/llm.py, which has the rest.
The dry run prints the memory plan and needs no accelerator; no training at this size is recorded.
"""

import ml_collections

from configs import llm


def get_config(hardware: str = "") -> ml_collections.ConfigDict:
    """Returns the config for a hardware; raises ValueError for an unknown one."""
    return llm.get_config(f"llama3_8b,{hardware}")
