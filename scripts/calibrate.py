"""Calibrates projectors, and shows the directions that they leave free.

    python -m scripts.calibrate --config=configs/tiny.py:nspo
    python -m scripts.calibrate --config=configs/tiny.py:nspo --output=projectors \
        --config.calibration.rank_rule='relative_max(5e-3)'
    python -m scripts.calibrate --config=configs/tiny.py:nspo --try_rule='energy(0.05)' \
        --try_rule='energy(0.1)' --try_rule='relative_max(5e-4)+mlp/out=fixed(64)'

Training calibrates by itself when this rank rule has not been used yet in the config's workspace;
this command is for a look before training. "free" is the share of input directions that an update
may use, "energy" the share of the inputs' energy in the protected ones. --try_rule stores nothing:
it prints the directions that each rule would protect, from one pass over the text.

The model's layers are read from disk and run one at a time. An interrupted calibration continues
after its last whole layer.
"""

from absl import flags

from nspo_jax import base_model, settings, sharding
from nspo_jax.reports import tables
from nspo_jax.rl import checks
from scripts import launch

CONFIG = launch.define_config()
OUTPUT = launch.define_output("output", "Also save the projectors in this directory.")
TRY_RULE = flags.DEFINE_multi_string(
    "try_rule", [], "Only print the effect of this rank rule; may be given several times."
)


def main() -> None:
    """Calibrates, or tries rules, and prints the table."""
    run = settings.from_config(CONFIG.value)
    if TRY_RULE.value and OUTPUT.value:
        raise ValueError("--try_rule stores nothing; --output is for a calibration. Give one.")
    checks.check_config(run, is_run=False)
    base = base_model.open_base(run, sharding.mesh_from_config(run))
    if TRY_RULE.value:
        rows = base_model.preview_projectors(run, base, TRY_RULE.value)
        print(f"\n{tables.format_rules(rows)}")
        return
    projectors = base_model.open_projectors(run, base)
    if OUTPUT.value:
        projectors.save(OUTPUT.value)
    print(f"\n{tables.format_projectors(projectors)}")


if __name__ == "__main__":
    launch.run(main, interrupted="stopped; the same command continues after the last whole layer")
