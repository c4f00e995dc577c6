"""Figures of sweeps, spectra and reward models."""

from collections.abc import Sequence
import pathlib
from typing import Any, cast
import zlib

import matplotlib
from matplotlib import colors
import numpy as np
from PIL import Image

from nspo_jax import metrics, nullspace

matplotlib.use("Agg")  # this backend needs no display
from matplotlib import pyplot as plt  # noqa: E402  the backend must be chosen first

# An arm has the same colour in every figure; the name of any other arm decides its colour.
COLOURS = {
    "base": "black", "grpo": "tab:red", "grpo_tuned": "tab:orange", "grpo_kl": "tab:brown",
    "dpo": "tab:purple", "ppo_lagrangian": "tab:pink", "random": "tab:gray", "nspo": "tab:blue",
    "nspo_coords": "tab:cyan", "nspo_dpo": "navy", "nspo_linear": "tab:green",
    "nspo_mlp_frozen": "tab:olive", "nspo_paper": "goldenrod", "nspo_momentum": "skyblue",
    "project_gradient": "darkmagenta", "mlp_only": "sienna",
}  # fmt: skip
CURVES = 6  # a panel has at most so many


def plot_arms(
    workdir: pathlib.Path, arms: list[str], seeds: list[int], path: pathlib.Path | None = None
) -> pathlib.Path:
    """Draws general capability and over-refusal against the unsafe rate along training.

    A column holds at most `CURVES` arms; arms with replay have columns of their own. Thick lines
    are medians over seeds, thin lines the seeds, and crosses at the ends reach from the smallest to
    the largest seed.

    Args:
      workdir: the sweep's directory.
      arms: names of its arms; "base" gets no curve, as all curves begin there.
      seeds: its seeds.
      path: the figure's path; None: `workdir/arms.png`.

    Raises:
      FileExistsError: if another figure is there.
      FileNotFoundError: if an arm has no evaluations.
    """
    columns = []
    # where no arm is called after its replay, a title about it could be wrong
    titles = ("harmful prompts only", "with benign replay")
    if not any(map(_is_replay, arms)):
        titles = ("", "")
    for title, replay in zip(titles, (False, True), strict=True):
        names = [arm for arm in arms if _is_replay(arm) == replay and arm != "base"]
        parts = [names[start : start + CURVES] for start in range(0, len(names), CURVES)]
        columns += [(title, part) for part in parts]
    curves = {
        arm: {y: curve(workdir, arm, seeds, y) for y in ("general", "over_refusal")}
        for _, names in columns
        for arm in names
    }
    rows = [("general", "general (%)")]
    if all(found["over_refusal"] for found in curves.values()):
        rows.append(("over_refusal", "over-refusal (%)"))
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(6.6 * len(columns), 4.4 * len(rows)),
        squeeze=False, sharey="row", sharex=True, layout="constrained",
    )  # fmt: skip
    for (score, label), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(label)
        for axis, (title, names) in zip(line, columns, strict=True):
            _scale(axis, score)
            axis.set_title(title)
            ends = {}
            for arm in names:
                ends[arm] = _draw_curve(axis, arm, curves[arm][score])
            _label_ends(axis, ends)
        lowest = min(run[:, 1].min() for found in curves.values() for run in found[score])
        line[0].set_ylim(bottom=max(0.0, lowest - 1.0))
    for axis in axes[-1]:
        axis.set_xlabel("unsafe, held in (%)")
    figure.suptitle(
        f"Along training, {len(seeds)} seed{'s' * (len(seeds) > 1)}: thick lines are medians, thin "
        "lines seeds,\ndiscs the ends, crosses from the smallest to the largest seed"
    )
    path = path or workdir / "arms.png"
    return _save(figure, path, f"arms of a sweep: {path.name}")


def _draw_curve(axis, arm: str, runs: list[np.ndarray]) -> tuple[float, float]:
    """Draws one arm's seeds, [evaluations, 2] each; returns its end."""
    style = {"color": colour(arm)}
    middle = np.median(runs, axis=0)
    for run in runs:
        axis.plot(*run.T, linewidth=0.6, alpha=0.35, **style)
    axis.plot(*middle.T, linewidth=2.0, linestyle="--" if _is_replay(arm) else "-", **style)
    ends = np.array([run[-1] for run in runs])
    (x, y), low, high = middle[-1], ends.min(axis=0), ends.max(axis=0)
    axis.errorbar(
        x, y, xerr=[[x - low[0]], [high[0] - x]], yerr=[[y - low[1]], [high[1] - y]],
        marker="o", markersize=7, linewidth=1.2, capsize=2, **style,
    )  # fmt: skip
    return x, y


def _scale(axis, score: str) -> None:
    """Sets square-root scales from the good corner, near which a point is worth more."""
    axis.set_xscale("function", functions=(_root, np.square))
    axis.set_xticks([0, 1, 3, 10, 20, 40, 60, 80, 100])
    axis.set_xlim(0, 100)
    if score == "general":
        axis.set_yscale("function", functions=(lambda y: -_root(100 - y), lambda y: 100 - y**2))
        axis.set_yticks([50, 60, 70, 80, 90, 95, 97, 99, 100])
        axis.set_ylim(top=100.0)
    else:
        axis.set_yscale("function", functions=(_root, np.square))
        axis.set_yticks([0, 1, 3, 10, 20, 40, 60, 80, 100])
    axis.grid(alpha=0.3)


def _label_ends(axis, ends: dict[str, tuple[float, float]]) -> None:
    """Writes each arm's name at the right, in the order of the ends, joined to its end."""
    order = sorted(ends, key=lambda arm: -ends[arm][1])
    for index, arm in enumerate(order):
        height = 0.95 - 0.9 * index / max(1, CURVES - 1)
        axis.annotate(
            arm, ends[arm], xytext=(1.02, height), textcoords="axes fraction", va="center",
            fontsize=9, color=colour(arm), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour(arm), "alpha": 0.4, "linewidth": 0.8},
        )  # fmt: skip


def colour(arm: str) -> Any:
    """Returns the colour of an arm by its name without the grid's fields and `_replay`."""
    name = arm.split(",")[0].removesuffix("_replay")
    maps = [cast(Any, plt.get_cmap(name)) for name in ("tab20b", "tab20c")]  # both list colours
    others = [*maps[0].colors, *maps[1].colors]
    return COLOURS.get(name) or others[zlib.crc32(arm.encode()) % len(others)]


def _save(figure, path: pathlib.Path, identity: str) -> pathlib.Path:
    """Writes a figure; it replaces only an older one of the same identity.

    Raises:
      FileExistsError: if another file is there.
    """
    if path.exists():
        try:
            with Image.open(path) as found:
                same = getattr(found, "text", {}).get("Description") == identity
        except OSError:  # the file is no picture
            same = False
        if not same:
            plt.close(figure)
            raise FileExistsError(
                f"{path} exists and is not this figure, an earlier drawing of it aside. Delete it, "
                "or name another file."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Description": identity})
    plt.close(figure)
    return path


def plot_spectra(projectors: nullspace.Projectors, path: pathlib.Path) -> pathlib.Path:
    """Draws every site's eigenvalues, a line a layer, with a dot at the last protected one.

    Raises:
      FileExistsError: if another figure is there.
    """
    count = len(projectors.spectra)
    width = min(3, count)
    height = -(-count // width)
    figure, axes = plt.subplots(
        height, width, figsize=(4.6 * width, 3.6 * height), squeeze=False, layout="constrained"
    )
    deepest = max(len(spectra.layers()) for spectra in projectors.spectra.values())
    shades = plt.cm.ScalarMappable(colors.Normalize(0, max(1, deepest - 1)), "viridis")
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis, (name, spectra) in zip(axes.flat, projectors.spectra.items(), strict=False):
        ranks = projectors.sites[name].protected_ranks.reshape(-1)
        for layer, (spectrum, rank) in enumerate(zip(spectra.layers(), ranks, strict=True)):
            shade = shades.to_rgba(layer)  # pyright: ignore[reportArgumentType]  # one number will do
            shares = np.maximum(spectrum.values / spectrum.trace, 1e-12)
            axis.plot(np.arange(1, len(shares) + 1), shares, color=shade, linewidth=1)
            if 0 < rank <= len(shares):
                axis.plot(rank, shares[rank - 1], marker="o", markersize=5, color=shade)
        axis.set_yscale("log")
        axis.set_xlim(1, spectra.size)
        axis.set_title(f"{name}: {min(ranks)} to {max(ranks)} of {spectra.size} protected")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of the inputs' energy")
    figure.supxlabel("direction, by energy")
    if deepest > 1:
        figure.colorbar(shades, ax=axes, label="layer", shrink=0.8)
    figure.suptitle("Spectra of the inputs; a dot is a layer's last protected direction")
    return _save(figure, path, f"spectra of {projectors.provenance.get('fingerprint', '')}")


def plot_differences(
    names: Sequence[str], intervals: Sequence[tuple[float, float, float]], path: pathlib.Path
) -> pathlib.Path:
    """Draws a forest plot: a line a score, with its difference and interval in points.

    Args:
      names: the scores' names, from top to bottom.
      intervals: (low, difference, high) of each, as shares of 1.
      path: the figure's path.

    Raises:
      FileExistsError: if another figure is there.
    """
    low, middle, high = 100 * np.asarray(intervals, np.float64).T
    places = np.arange(len(names))[::-1]
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.32 * len(names)), layout="constrained")
    axis.axvline(0.0, color="gray", linewidth=1)
    arms = np.maximum((middle - low, high - middle), 0.0)
    axis.errorbar(middle, places, xerr=arms, fmt="o", color=COLOURS["nspo"], capsize=3)
    axis.set_yticks(places, names)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlabel("difference in points, with its 95 % interval")
    axis.grid(axis="x", alpha=0.3)
    return _save(figure, path, f"differences: {path.name}")


def plot_calibration(
    predicted: np.ndarray, observed: np.ndarray, path: pathlib.Path
) -> pathlib.Path:
    """Draws the observed frequency of outcomes against their predicted probability.

    Args:
      predicted: probabilities [n].
      observed: bool [n].
      path: the figure's path.

    Raises:
      FileExistsError: if another figure is there.
    """
    bins = np.minimum((predicted * 10).astype(int), 9)
    filled = [index for index in range(10) if np.any(bins == index)]
    claimed = np.array([predicted[bins == index].mean() for index in filled])
    found = np.array([observed[bins == index].mean() for index in filled])
    counts = np.bincount(bins, minlength=10)
    error = np.sum(counts[filled] * np.abs(claimed - found)) / len(predicted)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    above.plot(claimed, found, marker="o", label=f"expected calibration error {error:.3f}")
    above.set_ylabel("observed frequency")
    above.set_title(f"Calibration on {len(predicted)} held-out cases")
    above.grid(alpha=0.3)
    above.legend(loc="lower right")
    below.bar(np.arange(10) / 10 + 0.05, counts, width=0.09)
    below.set_yscale("symlog", linthresh=1)
    below.set_ylabel("cases")
    below.set_xlabel("predicted probability")
    return _save(figure, path, f"calibration: {path.name}")


AGAINST = {  # score -> its line's name and colour
    "unsafe": ("unsafe", "tab:red"),
    "unsafe_both": ("unsafe, nouns and templates held out", "tab:orange"),
    "over_refusal": ("over-refusal", "tab:purple"),
    "general": ("general", "tab:green"),
}


def plot_against(arms: dict[str, dict], field: str, path: pathlib.Path) -> pathlib.Path:
    """Draws scores against a field of a sweep's grid, with every seed a dot.

    Args:
      arms: a sweep's summary: "ARM,FIELD=VALUE" -> scores, each a list with a number a seed.
      field: the last part of the field's dotted name.
      path: the figure's path.

    Raises:
      FileExistsError: if another figure is there.
      ValueError: if no arm has that field in its name, or several have one value of it.
    """
    points = {}
    for name, scores in arms.items():
        fields = dict(part.split("=", 1) for part in name.split(",")[1:])
        if field in fields:
            if fields[field] in points:
                raise ValueError(
                    f"Several arms have {field}={fields[field]}: name those of one line with "
                    f"--arms; there are {', '.join(arms)}."
                )
            points[fields[field]] = scores
    if not points:
        raise ValueError(
            f"No arm of the sweep was run for values of {field!r}; there are {', '.join(arms)}."
        )
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    places = np.arange(len(points))
    for score, (label, shade) in AGAINST.items():
        if any(score not in scores for scores in points.values()):
            continue
        values = [100 * np.array(scores[score]) for scores in points.values()]
        axis.plot(places, [np.median(v) for v in values], color=shade, marker="o", label=label)
        for place, seeds in zip(places, values, strict=True):
            axis.plot([place] * len(seeds), seeds, ".", color=shade, alpha=0.5, markersize=5)
    axis.set_xticks(places, list(points))
    axis.set_xlabel(field.replace("_", " "))
    axis.set_ylabel("% (square-root scale; line: median, dots: seeds)")
    axis.set_yscale("function", functions=(_root, np.square))
    axis.set_yticks([0, 1, 3, 10, 20, 40, 60, 80, 100])
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _save(figure, path, f"scores against {field}: {', '.join(points)}")


def curve(
    workdir: pathlib.Path, arm: str, seeds: list[int], score: str = "general"
) -> list[np.ndarray]:
    """Reads the unsafe rate and a score in percent along training, [evaluations, 2] of each seed.

    If seeds stopped at different steps, the finished ones stay at their last value while any goes
    on. The list is empty if a seed has no such score.

    Raises:
      FileNotFoundError: if a seed has no evaluations.
    """
    runs = []
    for seed in seeds:
        rows = metrics.read_metrics(workdir / f"seed_{seed}" / "runs" / arm)
        rows = {row["step"]: row for row in rows if "evaluation/unsafe" in row}
        if not rows:
            raise FileNotFoundError(f"No evaluations of {arm} at seed {seed} in {workdir}.")
        if any(f"evaluation/{score}" not in row for row in rows.values()):
            return []
        runs.append([
            (row["evaluation/unsafe"], row[f"evaluation/{score}"])
            for _, row in sorted(rows.items())
        ])  # fmt: skip
    longest = max(len(run) for run in runs)
    return [100 * np.array(run + run[-1:] * (longest - len(run))) for run in runs]


def _is_replay(arm: str) -> bool:
    """Tells whether an arm replays; a sweep's grid may have added ",FIELD=VALUE" to its name."""
    return arm.split(",")[0].endswith("_replay")


def _root(values):
    return np.sqrt(np.maximum(values, 0))
