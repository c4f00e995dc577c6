"""NSPO on public safety prompts: `--config=configs/safety.py:SIZE[,HARDWARE]`, as configs/llm.py.

    python -m scripts.train --config=configs/safety.py:qwen2_5_7b,h100x8 --config.model.path=PATH \
        --config.data.evaluation=xstest_prompts.csv+harmful_behaviors.csv \
        --workdir=runs/safety/nspo

Trains on the first 40 % of PKU-SafeRLHF and preserves general questions; both come from the Hugging
Face Hub, or from data.train_path and data.general_path. data.evaluation are files of XSTest and of
harmful prompts; `unsafe` is the share of the latter that is not refused, which is no rate of harm.
The task has no reward of its own: config.rewards.terms says what judges the answers.
"""

import ml_collections

from configs import llm


def get_config(name: str = "qwen2_5_7b") -> ml_collections.ConfigDict:
    """The config of "SIZE" or "SIZE,HARDWARE"; raises ValueError as configs/llm.py."""
    config = llm.get_config(name)
    config.task = "safety"
    config.workspace = f"runs/safety_{name.partition(',')[0]}"
    config.data.train_split = "train[:40%]"
    return config
