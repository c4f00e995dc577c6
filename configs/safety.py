"""NSPO on public safety prompts: `--config=configs/safety.py:SIZE[,HARDWARE]`, as configs/llm.py.

    python -m scripts.train --config=configs/safety.py:qwen2_5_7b,h100x8 --config.model.path=PATH \
        --config.rewards.guard.path=PATH \
        --config.data.evaluation=xstest_prompts.csv+harmful_behaviors.csv \
        --workdir=runs/safety/nspo

The run trains on the first 40 % of PKU-SafeRLHF and preserves general questions. Both come from the
Hugging Face Hub, or from data.train_path and data.general_path. data.evaluation names files of
XSTest and of harmful prompts; `unsafe` is the share of the latter that is not refused, which is no
rate of harm. A guard judges all answers. There are a quarter as many benign prompts as harmful
ones, and their refusals count against the policy. config.rewards.terms names other judges. No
result at this size is recorded.
"""

import ml_collections

from configs import llm


def get_config(name: str = "qwen2_5_7b") -> ml_collections.ConfigDict:
    """Returns the config of "SIZE" or "SIZE,HARDWARE"; raises ValueError as configs/llm.py does."""
    config = llm.get_config(name)
    config.task = "safety"
    config.workspace = f"runs/safety_{name.partition(',')[0]}"
    config.data.train_split = "train[:40%]"
    config.rl.prompts = 256  # with 64 benign ones a step has the paper's 320
    config.data.benign_fraction = 0.25
    config.rewards.terms = "guard+over_refusal"
    config.rewards.on_failure = "drop_group"  # a few of ten thousand prompts do not fit the guard
    return config
