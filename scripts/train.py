"""Trains a policy: safety RL under the null-space constraint, or one of its baselines.

    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/nspo
    python -m scripts.train --config=configs/tiny.py:grpo --workdir=runs/tiny/grpo
    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/nspo_mlp \
        --config.projection.targets=mlp --config.calibration.rank_rule='energy(0.03)'

configs/default.py explains every field; `--config.FIELD=VALUE` sets one. The same command continues
an interrupted run. The workdir ends up with metrics.jsonl, tensorboard/, certificate.json,
summary.json, checkpoints/ and policy/, a Hugging Face directory.
"""

import json
import pathlib

from absl import flags

from nspo_jax import nullspace
from nspo_jax.evaluation import report
from nspo_jax.rl import trainer
from scripts import launch

CONFIG = launch.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)


def main() -> None:
    """Trains, then prints the certificate and the scores."""
    workdir = pathlib.Path(WORKDIR.value)
    summary = trainer.train(CONFIG.value, workdir)
    certificate = json.loads((workdir / "certificate.json").read_text())
    print(f"\n{nullspace.format_certificate(certificate)}\n")
    print(report.format_scores({workdir.name: summary}))
    print(
        f"\nThe policy is in {workdir / 'policy'}, what it kept in {workdir / 'certificate.json'}."
    )


if __name__ == "__main__":
    launch.run(main)
