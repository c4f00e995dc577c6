"""Runs every arm of a sweep at every seed and grid point, and reports them together.

    python -m scripts.sweep --config=configs/sweeps/tiny_arms.py --workdir=runs/tiny_arms
    python -m scripts.sweep --config=configs/sweeps/tiny_arms.py --workdir=runs/mlp \
        --config.arms=grpo+nspo_paper+nspo_mlp_frozen --config.seeds=0+1
    # two runs at a time, each in a process of its own, on its own accelerators
    python -m scripts.sweep --config=configs/sweeps/tiny_grid.py --workdir=runs/grid --parallel=2
    # the commands, one a run, for other machines
    python -m scripts.sweep --config=configs/sweeps/tiny_grid.py --workdir=/bucket/grid --print

The sweep leaves in the workdir: a directory a run (seed_0/runs/nspo), summary.json, table.md and
arms.png. The same command continues an interrupted sweep and skips finished runs.
"""

import json
import pathlib
import time
from typing import Any

from absl import flags

from nspo_jax import files, progress, run_directory
from nspo_jax.reports import figures, tables
from nspo_jax.rl import trainer
from scripts import launch, processes, sweep_runs

CONFIG = launch.define_config("sweep")
WORKDIR = flags.DEFINE_string("workdir", None, "The sweep's directory.", required=True)
PRINT = flags.DEFINE_bool(
    "print", False, "Print the command of each run that is not finished, and run nothing."
)
PARALLEL = flags.DEFINE_integer(
    "parallel", None, "Runs at a time, each in its own process, on its share of the accelerators. "
    "Default: one after another in this process.",
)  # fmt: skip
RETRIES = flags.DEFINE_integer(
    "retries", 2, "With --parallel: the most restarts of a run that crashed or was preempted.",
    lower_bound=0,
)  # fmt: skip


def main() -> None:
    """Runs the missing runs, then writes summary, table and figure."""
    started = time.monotonic()
    sweep, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    if PARALLEL.value is None and flags.FLAGS["retries"].present:
        raise ValueError(
            f"--retries is {RETRIES.value} without --parallel: a run in this process is not tried "
            "again. Add --parallel=1, or the number of runs at a time."
        )
    runs = sweep_runs.expand(sweep, workdir)
    unfinished = [
        run for run in runs if not run_directory.resumes_finished(run.settings, run.directory)
    ]
    if PRINT.value:
        sweep_runs.print_commands(unfinished)
        return
    run_directory.check_directory(workdir, "--workdir")  # with --print it may be another machine's
    if PARALLEL.value is None:
        for run in progress.Bar(runs, desc="sweep", unit="run"):
            trainer.train(run.settings, run.directory)
    else:
        run_processes(runs, unfinished, workdir)

    names = list(dict.fromkeys(run.name for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    summary = {
        "arms": {name: collect([load(run) for run in runs if run.name == name]) for name in names},
        "seeds": seeds,
        "seconds": time.monotonic() - started,
    }
    files.write_text(workdir / "summary.json", json.dumps(summary, indent=1))
    files.write_text(workdir / "table.md", tables.format_scores(summary["arms"], markdown=True))
    figure = "none, of the base alone"
    if set(names) != {"base"}:
        figure = figures.plot_arms(workdir, names, seeds)
    certificate = sweep_runs.run_path(workdir, "nspo", seeds[0]) / "certificate.json"
    print(f"\n{tables.format_scores(summary['arms'])}\n")
    print(f"table: {workdir / 'table.md'}, figure: {figure}")
    if certificate.exists():
        print(f"certificate of nspo: {certificate}")


def run_processes(
    runs: list[sweep_runs.Run], unfinished: list[sweep_runs.Run], workdir: pathlib.Path
) -> None:
    """Runs the unfinished runs in processes of their own.

    Raises:
      ValueError: naming the runs that were given up; the others are finished by then.
    """
    jobs = [
        processes.Job(
            name=f"{run.name} at seed {run.seed}",
            command=run.command,
            directory=run.directory,
            log=workdir / f"seed_{run.seed}" / "logs" / f"{run.name}.log",
            makes=run.makes(),
        )
        for run in unfinished
    ]
    slots = processes.device_slots(PARALLEL.value)
    with progress.Bar(
        total=len(runs), initial=len(runs) - len(jobs), desc="sweep", unit="run"
    ) as bar:
        failures = processes.run_jobs(jobs, slots, RETRIES.value, lambda job: bar.update())
    if failures:
        lines = "\n".join(f"  {name}: {why}" for name, why in failures.items())
        raise ValueError(
            f"{len(failures)} of {len(runs)} runs did not finish:\n{lines}\n"
            "The same command tries these again."
        )


def load(run: sweep_runs.Run) -> dict[str, Any]:
    """Reads a finished run's summary."""
    return files.read_json(run.directory / "summary.json", "delete it, and run again")


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
