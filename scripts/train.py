"""Trains a policy: safety RL under the null-space constraint, or one of its baselines.

    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/nspo
    python -m scripts.train --config=configs/tiny.py:grpo --workdir=runs/tiny/grpo
    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/nspo_mlp \
        --config.projection.targets=mlp --config.calibration.rank_rule='energy(0.03)'

Two processes on this machine, one command each, at the same time (docs/scaling.md):

    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/two \
        --coordinator=localhost:9876 --processes=2 --process=0
    ... and --process=1

A memory plan before you pay, without an accelerator and without weights:

    python -m scripts.train --config=configs/llm.py:qwen2_5_7b,h100x8 --dry_run --chip=h100
    python -m scripts.train --config=configs/llm.py:qwen2_5_7b --dry_run --config.mesh.fsdp=16

docs/configuration.md explains every field; `--config.FIELD=VALUE` sets one. The same command
continues an interrupted run; SIGTERM saves first. --profile=10:12 traces the steps 10 and 11. The
run leaves metrics.jsonl, tensorboard/, certificate.json, summary.json, checkpoints/, policy/ (a
Hugging Face directory) and, with --profile, profile/ in the workdir.
"""

import math
import pathlib
import re

from absl import flags
import jax

from nspo_jax import chips, distributed, files, models, nullspace, settings, sharding
from nspo_jax.dry_run import plan as plan_lib
from nspo_jax.dry_run import report
from nspo_jax.reports import tables
from nspo_jax.rl import trainer
from scripts import launch

CONFIG = launch.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory.")
DEVICES = flags.DEFINE_integer(
    "devices", 0, "--dry_run: their number, if an axis of config.mesh is -1.", lower_bound=0
)
CHIP = flags.DEFINE_enum("chip", None, list(chips.CHIPS), "--dry_run: the chip to compare with.")
RANK_SHARE = flags.DEFINE_float(
    "assumed_rank_share", 1 / 8, "--dry_run: protected share of a site, unless the rule is fixed.",
    lower_bound=0.0, upper_bound=1.0,
)  # fmt: skip
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Continue the workdir's run with a config that has changed."
)
PROFILE = flags.DEFINE_string(
    "profile", None, "START:STOP: trace these steps, without STOP, into WORKDIR/profile."
)
launch.define_processes()


def main() -> None:
    """Trains, then prints the certificate and the scores."""
    if flags.FLAGS.dry_run:
        return dry_run()
    for holder in (DEVICES, CHIP, RANK_SHARE):
        if holder.present:
            raise ValueError(f"--{holder.name} is {holder.value}: it is for --dry_run. Add that.")
    if not WORKDIR.value:
        raise ValueError("--workdir is empty; expected where the run lives, such as runs/first.")
    workdir = pathlib.Path(WORKDIR.value)
    summary = trainer.train(
        settings.from_config(CONFIG.value),
        workdir,
        allow_config_change=ALLOW_CONFIG_CHANGE.value,
        profile=parse_steps(PROFILE.value) if PROFILE.value else None,
    )
    if not distributed.is_primary():
        return
    certificate = files.read_json(
        workdir / "certificate.json", "delete summary.json beside it, and run again"
    )
    print(f"\n{nullspace.format_certificate(certificate)}\n")
    print(tables.format_scores({workdir.name: summary}))
    print(
        f"\nThe policy is in {workdir / 'policy'}, what it kept in {workdir / 'certificate.json'}."
    )


def dry_run() -> None:
    """Plans the run on as many virtual devices as its mesh has."""
    run = settings.from_config(CONFIG.value)
    sizes = [settings.get(run, f"mesh.{axis}") for axis in sharding.AXES]
    devices = DEVICES.value
    if -1 not in sizes:
        devices = devices or math.prod(sizes)
    elif not devices:
        axis = sharding.AXES[sizes.index(-1)]
        raise ValueError(
            f"mesh.{axis} is -1, all devices that there are: say how many with --devices=N, or set "
            f"--config.mesh.{axis}=N."
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = sharding.mesh_from_config(run)
    if run.model.path:
        model = models.load_config(run.model.path)
    elif run.model.preset:
        model = models.PRESETS[run.model.preset]
    else:
        raise ValueError(
            "--dry_run needs to know the model: set --config.model.path, or take a config with a "
            "preset, such as configs/llm.py:qwen2_5_7b."
        )
    plan = plan_lib.make_plan(run, model, mesh, rank_share=RANK_SHARE.value)
    print(report.format_plan(plan, run, CHIP.value))


def parse_steps(text: str) -> tuple[int, int]:
    """Reads START:STOP; raises ValueError unless it names at least one step."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"--profile is {text!r}; expected START:STOP, such as 10:12.")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    launch.run(main)
