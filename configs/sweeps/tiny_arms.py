"""Most arms on the chat world at three seeds, on harmful prompts alone and with replay.

    python -m scripts.sweep --config=configs/sweeps/tiny_arms.py --workdir=runs/tiny_arms

It took 39 minutes on two very busy CPU cores. docs/adam_tables.md has the table by Adam: `nspo` at
0.5 % unsafe and 99.6 % general, `grpo` at 0.5 and 67.3 %.
"""

from typing import Any

import ml_collections

EXACT = ("nspo_exact", "project_gradient_exact")
ARMS = (
    "base", "grpo", "grpo_tuned", "grpo_kl", "mlp_only", "nspo", "nspo_coords", "nspo_linear",
    "nspo_mlp_frozen", "nspo_paper", "nspo_released", "project_gradient", "random",
)  # fmt: skip


def get_config() -> ml_collections.ConfigDict:
    """Returns the sweep of each arm of a config file at each seed."""
    config = ml_collections.ConfigDict()
    config.config = "configs/tiny.py"  # its get_config(ARM) makes the run's config
    config.arms = "+".join((*ARMS, *EXACT, *(f"{arm}_replay" for arm in ARMS if arm != "base")))
    config.model_path = ""  # the base model of every run; "": the one that the run makes
    config.seeds = "0+1+2"  # each seed has its own world and base model
    config.grid = make_grid({})
    config.fixed = make_fixed({})
    return config


def make_grid(values: dict[str, list]) -> ml_collections.ConfigDict:
    """Makes a grid of fields' values, such as {"rl.clip": [0.1, 0.2]}; all combinations run."""
    return make_fixed({field: tuple(tried) for field, tried in values.items()})


def make_fixed(values: dict[str, Any]) -> ml_collections.ConfigDict:
    """Makes the fields that every run of a sweep has, such as {"rl.steps": 20}."""
    return ml_collections.ConfigDict(values, allow_dotted_keys=True, sort_keys=False)
