"""Trains a policy: safety RL under the null-space constraint, or one of its baselines.

    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/nspo
    python -m scripts.train --config=configs/tiny.py:grpo --workdir=runs/tiny/grpo
    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/nspo_mlp \
        --config.projection.targets=mlp --config.calibration.rank_rule='energy(0.03)'

Two processes on this machine, one command each, at the same time (README: More than one process):

    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/two \
        --coordinator=localhost:9876 --processes=2 --process=0
    ... and --process=1

configs/default.py explains every field; `--config.FIELD=VALUE` sets one. The same command continues
an interrupted run; SIGTERM saves first. --profile=10:12 traces the steps 10 and 11. The workdir
ends up with metrics.jsonl, tensorboard/, certificate.json, summary.json, checkpoints/, policy/ (a
Hugging Face directory) and profile/, if it was asked for.
"""

import json
import pathlib
import re

from absl import flags

from nspo_jax import distributed, nullspace
from nspo_jax.evaluation import report
from nspo_jax.rl import trainer
from scripts import launch

CONFIG = launch.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Continue the workdir's run with another config than it began."
)
PROFILE = flags.DEFINE_string(
    "profile", None, "START:STOP: trace these steps, without STOP, into WORKDIR/profile."
)
launch.define_processes()


def main() -> None:
    """Trains, then prints the certificate and the scores."""
    workdir = pathlib.Path(WORKDIR.value)
    summary = trainer.train(
        CONFIG.value,
        workdir,
        allow_config_change=ALLOW_CONFIG_CHANGE.value,
        profile=parse_steps(PROFILE.value) if PROFILE.value else None,
    )
    if not distributed.is_primary():
        return
    certificate = json.loads((workdir / "certificate.json").read_text())
    print(f"\n{nullspace.format_certificate(certificate)}\n")
    print(report.format_scores({workdir.name: summary}))
    print(
        f"\nThe policy is in {workdir / 'policy'}, what it kept in {workdir / 'certificate.json'}."
    )


def parse_steps(text: str) -> tuple[int, int]:
    """Reads START:STOP; raises ValueError unless it names at least one step."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"--profile is {text!r}; expected START:STOP, such as 10:12.")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    launch.run(main)
