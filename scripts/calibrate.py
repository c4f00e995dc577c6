"""Calibrates projectors, and shows what they leave free.

    python -m scripts.calibrate --config=configs/tiny.py:nspo
    python -m scripts.calibrate --config=configs/tiny.py:nspo \
        --config.calibration.rank_rule='relative_max(5e-3)'

Training calibrates by itself when this rank rule has not been used yet in the config's workspace;
this command is for looking before training. "free" is the share of input directions that an update
may use, "energy" the share of the inputs' energy in the protected ones.
"""

from absl import flags

from nspo_jax import sharding, workspace
from nspo_jax.evaluation import report
from scripts import launch

CONFIG = launch.define_config()
OUTPUT = flags.DEFINE_string("output", None, "Also save the projectors in this directory.")


def main() -> None:
    """Calibrates and prints the table."""
    config = CONFIG.value
    work = workspace.open_workspace(config, sharding.make_mesh(**config.mesh))
    projectors = workspace.open_projectors(config, work)
    if OUTPUT.value:
        projectors.save(OUTPUT.value)
    print(f"\n{report.format_projectors(projectors)}")


if __name__ == "__main__":
    launch.run(main)
