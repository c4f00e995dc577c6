"""Certifies a policy's directory: measures how much its stored weights change the base model.

    python -m scripts.certify --config=configs/tiny.py:nspo --policy=runs/tiny/nspo/policy
    python -m scripts.certify --config=configs/llm.py:qwen2_5_0_5b --config.model.path=PATH \
        --policy=exported --output=certificate.json \
        --fail_above=protected_share=1e-5+held_out.kl=1e-3

The config names the base model with its calibration and held-out text. The policy is any export:
float32, bfloat16 (measured with the file's rounding), or a delta, whose difference is measured as
it was trained. The projectors are the config's, or those of --projectors. With --fail_above, the
exit status is 1 if a quantity is above its limit.
"""

import json
import pathlib
import sys

from absl import flags

from nspo_jax import (
    base_model,
    distributed,
    files,
    general_text,
    models,
    nullspace,
    settings,
    sharding,
)
from nspo_jax.nullspace import limits as limits_lib
from nspo_jax.rl import checks
from scripts import launch

CONFIG = launch.define_config()
POLICY = flags.DEFINE_string("policy", None, "The directory to certify.", required=True)
PROJECTORS = flags.DEFINE_string("projectors", None, "Their directory; default: the config's.")
OUTPUT = launch.define_output("output", "Also write the certificate there, as JSON.", file=True)
FAIL_ABOVE = flags.DEFINE_string(
    "fail_above", "", f"NAME=NUMBER joined by '+'; names: {', '.join(limits_lib.QUANTITIES)}."
)
launch.define_processes(dry_run=False)


def main() -> None:
    """Certifies the policy, prints and writes the report, and fails above a limit."""
    run = settings.from_config(CONFIG.value)
    limits = limits_lib.parse_limits(FAIL_ABOVE.value)
    checks.check_config(run, is_run=False)
    base = base_model.open_base(run, sharding.mesh_from_config(run))
    policy = base_model.load_policy(base, POLICY.value)
    if PROJECTORS.value:
        projectors = nullspace.load_projectors(PROJECTORS.value)
    else:
        projectors = base_model.open_projectors(run, base)
    calibration, held_out = (
        general_text.split_batches(text, run.calibration.batch_size)
        for text in (base.calibration, base.held_out)
    )
    change = models.load_change(POLICY.value, lambda params: sharding.shardings(base.mesh, params))
    if change is not None:
        base_model.check_delta(base, POLICY.value)
    report = nullspace.certify(
        base.model_config, base.params, policy, projectors, calibration, held_out, change=change
    )
    report["provenance"]["stored"] = models.stored_as(POLICY.value)
    broken = limits_lib.exceeded(report, limits)
    if not distributed.is_primary():
        sys.exit(int(bool(broken)))
    print(nullspace.format_certificate(report))
    if OUTPUT.value:
        output = pathlib.Path(OUTPUT.value)
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(output, json.dumps(report, indent=1))
    if broken:
        print(
            f"\nerror: {POLICY.value} changes more of the base model than --fail_above allows: "
            f"{'; '.join(broken)}.", file=sys.stderr,
        )  # fmt: skip
        sys.exit(1)


if __name__ == "__main__":
    launch.run(main)
