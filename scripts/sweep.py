"""Runs every arm of a sweep at every seed, here, one after another, and reports them together.

    python -m scripts.sweep --config=configs/sweeps/tiny_arms.py --workdir=runs/tiny_arms
    python -m scripts.sweep --config=configs/sweeps/tiny_arms.py --workdir=runs/mlp \
        --config.arms=grpo+nspo_paper+nspo_mlp_frozen --config.seeds=0+1

Leaves in the workdir: a directory per run (seed_0/runs/nspo), summary.json, table.md and
arms.png. The same command continues where it stopped: finished runs are not run again.
"""

import json
import pathlib
import runpy
import time

from absl import flags
import tqdm

from nspo_jax.evaluation import figures, report
from nspo_jax.rl import record, trainer
from scripts import launch

CONFIG = launch.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Where the sweep lives.", required=True)


def main() -> None:
    """Runs what is missing, then writes summary, table and figure."""
    started = time.monotonic()
    sweep, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    arms, seeds = sweep.arms.split("+"), [int(seed) for seed in sweep.seeds.split("+")]
    make_config = runpy.run_path(sweep.config)["get_config"]
    configs = {arm: make_config(arm) for arm in arms}  # an unknown arm fails before anything runs
    summaries: dict[str, list[dict]] = {arm: [] for arm in arms}
    runs = [(arm, seed) for seed in seeds for arm in arms]
    for arm, seed in tqdm.tqdm(runs, desc="sweep", unit="run"):
        config = configs[arm].copy_and_resolve_references()
        config.seed = seed
        config.workspace = str(workdir)
        config.model.path = sweep.model_path
        summaries[arm].append(trainer.train(config, run_directory(workdir, arm, seed)))

    summary = {
        "arms": {arm: collect(rows) for arm, rows in summaries.items()},
        "seeds": seeds,
        "seconds": time.monotonic() - started,
    }
    record.write_text(workdir / "summary.json", json.dumps(summary, indent=1))
    record.write_text(workdir / "table.md", report.format_scores(summary["arms"], markdown=True))
    figure = figures.plot_arms(workdir, arms, seeds)
    certificate = run_directory(workdir, "nspo", seeds[0]) / "certificate.json"
    print(f"\n{report.format_scores(summary['arms'])}\n")
    print(f"table: {workdir / 'table.md'}, figure: {figure}")
    if certificate.exists():
        print(f"certificate of nspo: {certificate}")


def run_directory(workdir: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """Where one run of a sweep lives."""
    return workdir / f"seed_{seed}" / "runs" / arm


def collect(rows: list[dict]) -> dict:
    """Turns one summary a seed into one list a score."""
    return {
        name: collect([row[name] for row in rows])
        if isinstance(value, dict)
        else [row[name] for row in rows]
        for name, value in rows[0].items()
    }


if __name__ == "__main__":
    launch.run(main)
