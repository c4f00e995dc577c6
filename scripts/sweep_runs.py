"""The runs of a sweep: every arm at every point of a grid and every seed, named and checked."""

import dataclasses
import itertools
import pathlib
import re
import shlex
import sys
from typing import Any

import ml_collections

from nspo_jax import base_model, rewards, settings
from nspo_jax.reward_models import store, training
from nspo_jax.rl import checks
from scripts import command_line, config_files


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      name: its arm and grid point, which name a row of the table for all seeds.
      seed: its seed.
      settings: all its settings.
      directory: its workdir.
      command: the command that runs it, anywhere.
    """

    name: str
    seed: int
    settings: settings.Run
    directory: pathlib.Path
    command: tuple[str, ...]

    def makes(self) -> list[pathlib.Path]:
        """Returns the paths that runs of its seed share and that it makes if they are absent."""
        base = self.settings.model.path or base_model.seed_directory(self.settings) / "base"
        terms = {spec.name for spec in rewards.parse_terms(self.settings.rewards.terms)}
        learned = [name for name in training.OBJECTIVES if f"{name}_model" in terms]
        return [
            pathlib.Path(base),
            base_model.projectors_directory(self.settings),
            *(store.model_directory(self.settings, objective) for objective in learned),
        ]


def expand(sweep: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[Run]:
    """Lists all runs of a sweep: each arm at each point of its grid and at each seed.

    An arm without a step, the base, keeps that whatever rl.steps the sweep has.

    Raises:
      FileNotFoundError, ValueError: for a file that makes no config, an unknown arm or field, a
        value that its field does not take, or two runs of one name, before any run starts.
    """
    get_config = config_files.read(sweep.config, "config.config")
    seeds = command_line.parse_seeds(sweep.seeds, "config.seeds")
    grid = {field: list(values) for field, values in sweep.grid.items()}
    runs = {}
    for seed, arm in itertools.product(seeds, sweep.arms.split("+")):
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            name = run_name(arm, point)
            directory = run_path(workdir, name, seed)
            changes = {
                **dict(sweep.fixed),
                **point,
                "seed": seed,
                "workspace": str(workdir),
                "model.path": sweep.model_path,
            }
            config = config_files.call(
                get_config, sweep.config, [arm], kind="run", said_by="config.config"
            )
            if not config.rl.steps:  # the arm is the untrained base, whatever the others train
                changes.pop("rl.steps", None)
            for field, value in changes.items():
                set_field(config, field, value)
            run_settings = settings.from_config(config)
            checks.check_config(run_settings)
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
            runs[directory] = Run(name, seed, run_settings, directory, command)
    return list(runs.values())


def run_name(arm: str, point: dict[str, Any]) -> str:
    """Makes the name of a row and of its directories, such as nspo,learning_rate=0.001."""
    parts = [f"{field.rpartition('.')[2]}={value}" for field, value in point.items()]
    return ",".join([arm, *(re.sub(r"[^\w.=()-]+", "_", part).rstrip("_") for part in parts)])


def set_field(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    """Sets a dotted field, as `--config.FIELD=VALUE` would."""
    config.lock()  # a new field is an error
    try:
        config.update_from_flattened_dict({field: value})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"The sweep sets {field} to {value!r}, which its config does not take: "
            f"{error.args[0]} docs/configuration.md lists every field."
        ) from error


def print_commands(runs: list[Run]) -> None:
    """Prints a command a run; runs that make artifacts for others come first."""
    made: set[pathlib.Path] = set()
    first, then = [], []
    for run in runs:
        missing = {path for path in run.makes() if not path.exists()} - made
        made |= missing
        (first if missing else then).append(shlex.join(run.command[1:]))
    if first:
        print("# one after another: these make base models and projectors, which runs share")
        print("\n".join(f"python {command}" for command in first))
    if then:
        print("# in any order, at once" + (", after those" if first else ""))
        print("\n".join(f"python {command}" for command in then))


def run_path(workdir: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Returns the directory of one run of a sweep."""
    return workdir / f"seed_{seed}" / "runs" / name
