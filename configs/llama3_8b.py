"""NSPO on Llama-3-8B at the paper's setting: `--config=configs/llama3_8b.py[:HARDWARE]`.

    python -m scripts.train --config=configs/llama3_8b.py --dry_run --config.mesh.fsdp=16
    python -m scripts.train --config=configs/llama3_8b.py:h100x8 --config.model.path=PATH \
        --workdir=runs/llama3_8b/nspo

PATH is the model's Hugging Face directory; HARDWARE one of configs/llm.py's, which says the rest.
"""

import ml_collections

from configs import llm


def get_config(hardware: str = "") -> ml_collections.ConfigDict:
    """The config for a hardware; raises ValueError for an unknown one."""
    return llm.get_config(f"llama3_8b,{hardware}")
