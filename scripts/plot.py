"""Draws a sweep: a curve for each arm, of capability against unsafe rate along training.

    python -m scripts.plot --workdir=runs/tiny_arms
    python -m scripts.plot --workdir=runs/tiny_arms --arms=grpo+grpo_tuned+nspo --seeds=0
    # the scores at the end against a field of the sweep's grid
    python -m scripts.plot --workdir=runs/over_refusal --against=benign_fraction

`python -m scripts.sweep` draws the same figure at its end. Up and to the left is better: safe, and
still capable. A curve starts at the base model and has a point an evaluation, so that no arm wins
by stopping early or by smaller steps.
"""

import pathlib
from typing import Any

from absl import flags

from nspo_jax import files
from nspo_jax.reports import figures
from scripts import command_line, launch

WORKDIR = flags.DEFINE_string("workdir", None, "The sweep's workdir.")
ARMS = flags.DEFINE_string("arms", None, "Arms to draw, joined by '+'; default: all.")
SEEDS = flags.DEFINE_string("seeds", None, "Seeds of the curves, joined by '+'; default: all.")
AGAINST = flags.DEFINE_string(
    "against", None, "Draw scores against this field of the grid instead, such as clip."
)


def main() -> None:
    """Draws the figure of a finished sweep."""
    workdir = pathlib.Path(WORKDIR.value or "")
    path = workdir / "summary.json"
    if not WORKDIR.value or not path.exists():
        raise FileNotFoundError(
            f"--workdir is {WORKDIR.value!r}: there is no {path}. Give the workdir of a finished "
            "`python -m scripts.sweep`."
        )
    summary = files.read_json(path, "run the sweep again, which makes it anew")
    if not {"arms", "seeds"} <= summary.keys():
        raise ValueError(
            f"--workdir is {WORKDIR.value!r}, the workdir of a run: give that of a sweep, which "
            "`python -m scripts.sweep` made."
        )
    arms = ARMS.value.split("+") if ARMS.value else list(summary["arms"])
    seeds = command_line.parse_seeds(SEEDS.value, "--seeds") if SEEDS.value else summary["seeds"]
    check_choice(summary, arms, seeds)
    if AGAINST.value:
        rows = {name: summary["arms"][name] for name in arms}
        name = f"{AGAINST.value}{',' + ARMS.value if ARMS.value else ''}.png"
        print(figures.plot_against(rows, AGAINST.value, workdir / name))
    else:  # a choice of arms has a file name of its own, and keeps the sweep's own figure
        chosen = [value for value in (ARMS.value, SEEDS.value) if value]
        print(
            figures.plot_arms(workdir, arms, seeds, workdir / f"{','.join(['arms', *chosen])}.png")
        )


def check_choice(summary: dict[str, Any], arms: list[str], seeds: list[int]) -> None:
    """Raises ValueError unless a sweep's summary has the arms and seeds, and a curve to draw."""
    for flag, asked, there in (
        ("arms", arms, list(summary["arms"])), ("seeds", seeds, summary["seeds"])
    ):  # fmt: skip
        if missing := [str(name) for name in asked if name not in there]:
            raise ValueError(
                f"--{flag} names {', '.join(missing)}; the sweep has {', '.join(map(str, there))}."
            )
    if set(arms) == {"base"} and not AGAINST.value:
        raise ValueError(
            f"--arms is {ARMS.value!r}: the base model is where every curve starts, and has none "
            "of its own. Name other arms."
        )
    if AGAINST.value and SEEDS.value:
        raise ValueError(
            f"--seeds is {SEEDS.value!r} with --against, which draws every seed. Give one of them."
        )


if __name__ == "__main__":
    launch.run(main)
