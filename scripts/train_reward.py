"""Trains a reward or a cost model on preference pairs, from the config's base model.

    python -m scripts.train_reward --config=configs/tiny.py:nspo --objective=cost
    python -m scripts.train_reward --config=configs/llm.py:qwen2_5_0_5b --config.model.path=PATH \
        --config.reward_training.dataset=pku_safe_rlhf --objective=reward --output=runs/helpful

The objective reward is Bradley-Terry on the better response. The objective cost is Safe RLHF's: it
ranks the safer response, and its sign tells an unsafe one. The script prints the agreement with
held-out pairs after every epoch, by kind of harm at the end, and how often the model prefers an
answer that says nothing, or a refusal of a harmless prompt, to the preferred response. It writes a
Hugging Face directory (sequence classification, one label) with a report and a calibration plot
beside it, in the place where runs of this config look for it, or in --output. The fields are those
of config.reward_training.
"""

import pathlib

from absl import flags

from nspo_jax import base_model, settings, sharding
from nspo_jax.reports import tables
from nspo_jax.reward_models import report, store, training
from nspo_jax.rl import checks
from scripts import launch

CONFIG = launch.define_config()
OBJECTIVE = flags.DEFINE_enum("objective", "cost", training.OBJECTIVES, "The loss.")
OUTPUT = launch.define_output("output", "The model's directory.")


def main() -> None:
    """Trains and writes the model, and prints a table."""
    config, objective = settings.from_config(CONFIG.value), OBJECTIVE.value
    checks.check_config(config, is_run=False)
    directory = pathlib.Path(OUTPUT.value or store.model_directory(config, objective))
    if directory.exists():
        raise ValueError(f"{directory} is there already: delete it, or give another --output.")
    base = base_model.open_base(config, sharding.mesh_from_config(config))
    measured = store.train_model(config, base, objective, directory)
    print(tables.format_epochs(measured.epochs))
    print(f"\n{report.format_report(measured.categories, measured.probes)}\n\n{directory}")


if __name__ == "__main__":
    launch.run(main, interrupted="Stopped: nothing is kept, the same command starts over.")
