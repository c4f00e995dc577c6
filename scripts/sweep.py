"""Runs every arm of a sweep at every seed and grid point, and reports them together.

    python -m scripts.sweep --config=configs/sweeps/tiny_arms.py --workdir=runs/tiny_arms
    python -m scripts.sweep --config=configs/sweeps/tiny_arms.py --workdir=runs/mlp \
        --config.arms=grpo+nspo_paper+nspo_mlp_frozen --config.seeds=0+1
    # two runs at a time, each in a process of its own, on its own accelerators
    python -m scripts.sweep --config=configs/sweeps/tiny_grid.py --workdir=runs/grid --parallel=2
    # not here: the commands, one a run, for other machines
    python -m scripts.sweep --config=configs/sweeps/tiny_grid.py --workdir=/bucket/grid --print

Leaves in the workdir: a directory per run (seed_0/runs/nspo), summary.json, table.md and
arms.png. The same command continues where it stopped: finished runs are not run again.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import runpy
import shlex
import sys
import time
from typing import Any

from absl import flags
import ml_collections
import tqdm

from nspo_jax import tasks, workspace
from nspo_jax.evaluation import figures, report
from nspo_jax.rl import trainer
from scripts import launch, processes

CONFIG = launch.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Where the sweep lives.", required=True)
PRINT = flags.DEFINE_bool(
    "print", False, "Print the command of each run that is not finished, and run nothing."
)
PARALLEL = flags.DEFINE_integer(
    "parallel", None, "Runs at a time, each in its own process, on its share of the accelerators. "
    "Default: one after another in this process.",
)  # fmt: skip
RETRIES = flags.DEFINE_integer(
    "retries", 2, "With --parallel: how often a run that crashed or was preempted is continued.",
    lower_bound=0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      name: its arm and grid point, shared by its seeds: a row of the table.
      seed: its seed.
      config: its whole config.
      directory: its workdir.
      command: the command that runs it, anywhere.
    """

    name: str
    seed: int
    config: ml_collections.ConfigDict
    directory: pathlib.Path
    command: tuple[str, ...]

    def makes(self) -> list[pathlib.Path]:
        """What it shares with other runs of its seed and makes where it is absent."""
        base = self.config.model.path or workspace.seed_directory(self.config) / "base"
        return [
            tasks.data_directory(self.config),
            pathlib.Path(base),
            workspace.projectors_directory(self.config),
        ]


def main() -> None:
    """Runs what is missing, then writes summary, table and figure."""
    started = time.monotonic()
    sweep, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    runs = expand(sweep, workdir)
    unfinished = [run for run in runs if not trainer.resumes_finished(run.config, run.directory)]
    if PRINT.value:
        print_commands(unfinished)
        return
    if PARALLEL.value is None:
        for run in tqdm.tqdm(runs, desc="sweep", unit="run"):
            trainer.train(run.config, run.directory)
    else:
        run_processes(runs, unfinished, workdir)

    names = list(dict.fromkeys(run.name for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    summary = {
        "arms": {name: collect([load(run) for run in runs if run.name == name]) for name in names},
        "seeds": seeds,
        "seconds": time.monotonic() - started,
    }
    trainer.write_text(workdir / "summary.json", json.dumps(summary, indent=1))
    trainer.write_text(workdir / "table.md", report.format_scores(summary["arms"], markdown=True))
    figure = figures.plot_arms(workdir, names, seeds)
    certificate = run_directory(workdir, "nspo", seeds[0]) / "certificate.json"
    print(f"\n{report.format_scores(summary['arms'])}\n")
    print(f"table: {workdir / 'table.md'}, figure: {figure}")
    if certificate.exists():
        print(f"certificate of nspo: {certificate}")


def expand(sweep: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[Run]:
    """All runs of a sweep: each arm at each point of its grid, at each seed.

    Raises:
      ValueError: for an unknown arm or field, a value that its field does not take, or two runs of
        one name, before anything runs.
    """
    make_config = runpy.run_path(sweep.config)["get_config"]
    grid = {field: list(values) for field, values in sweep.grid.items()}
    runs = {}
    for seed, arm in itertools.product(sweep.seeds.split("+"), sweep.arms.split("+")):
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            name = run_name(arm, point)
            directory = run_directory(workdir, name, int(seed))
            changes = {
                **point,
                "seed": int(seed),
                "workspace": str(workdir),
                "model.path": sweep.model_path,
            }
            config = make_config(arm)
            for field, value in changes.items():
                set_field(config, field, value)
            trainer.check_config(config)
            if directory in runs:
                raise ValueError(
                    f"Two runs of the sweep are called {name} at seed {seed}. Name every arm, seed "
                    "and grid value once, and differing in letters or digits."
                )
            command = (
                sys.executable, "-m", "scripts.train", f"--config={sweep.config}:{arm}",
                f"--workdir={directory}",
                *(f"--config.{field}={value}" for field, value in changes.items()),
            )  # fmt: skip
            runs[directory] = Run(name, int(seed), config, directory, command)
    return list(runs.values())


def run_name(arm: str, point: dict[str, Any]) -> str:
    """A row's name, which is a directory's as well: nspo,learning_rate=0.001."""
    parts = [f"{field.rpartition('.')[2]}={value}" for field, value in point.items()]
    return ",".join([arm, *(re.sub(r"[^\w.=()-]", "_", part) for part in parts)])


def set_field(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    """Sets a dotted field, as `--config.FIELD=VALUE` would."""
    try:
        config.update_from_flattened_dict({field: value})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The sweep's grid sets {field} to {value!r}, which its config does not take: "
            f"{error.args[0]} configs/default.py lists every field with a comment."
        ) from error


def print_commands(runs: list[Run]) -> None:
    """Prints a command a run, first of those that make what others then share."""
    made: set[pathlib.Path] = set()
    first, then = [], []
    for run in runs:
        missing = {path for path in run.makes() if not path.exists()} - made
        made |= missing
        (first if missing else then).append(shlex.join(run.command[1:]))
    if first:
        print("# one after another: these make data, base models and projectors, which runs share")
        print("\n".join(f"python {command}" for command in first))
    if then:
        print("# in any order, at once" + (", after those" if first else ""))
        print("\n".join(f"python {command}" for command in then))


def run_processes(runs: list[Run], unfinished: list[Run], workdir: pathlib.Path) -> None:
    """Runs what is not finished in processes of their own.

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
    with tqdm.tqdm(total=len(runs), initial=len(runs) - len(jobs), desc="sweep", unit="run") as bar:
        failures = processes.run_jobs(jobs, slots, RETRIES.value, lambda job: bar.update())
    if failures:
        lines = "\n".join(f"  {name}: {why}" for name, why in failures.items())
        raise ValueError(
            f"{len(failures)} of {len(runs)} runs did not finish:\n{lines}\n"
            "The same command tries these again."
        )


def load(run: Run) -> dict[str, Any]:
    """A finished run's summary."""
    return json.loads((run.directory / "summary.json").read_text())


def run_directory(workdir: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Where one run of a sweep lives."""
    return workdir / f"seed_{seed}" / "runs" / name


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
