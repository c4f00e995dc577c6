"""Draws a sweep: capability against unsafe rate along training, every arm a curve.

    python -m scripts.plot --workdir=runs/tiny_arms
    python -m scripts.plot --workdir=runs/tiny_arms --arms=grpo+grpo_tuned+nspo --seeds=0
    # the scores at the end against a field of the sweep's grid
    python -m scripts.plot --workdir=runs/over_refusal --against=benign_fraction

`python -m scripts.sweep` draws the same figure at its end. Up and to the left is better: safe, and
still capable. A curve starts at the base model and has a point an evaluation, so that nobody wins
by stopping early or by smaller steps.
"""

import json
import pathlib

from absl import flags

from nspo_jax.evaluation import figures
from scripts import launch

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
    summary = json.loads(path.read_text())
    arms = ARMS.value.split("+") if ARMS.value else list(summary["arms"])
    seeds = [int(s) for s in SEEDS.value.split("+")] if SEEDS.value else summary["seeds"]
    if AGAINST.value:
        rows = {name: summary["arms"][name] for name in arms}
        print(figures.plot_against(rows, AGAINST.value, workdir / f"{AGAINST.value}.png"))
    else:
        print(figures.plot_arms(workdir, arms, seeds))


if __name__ == "__main__":
    launch.run(main)
