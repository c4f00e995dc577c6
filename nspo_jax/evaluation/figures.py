"""Figures."""

import pathlib

import matplotlib
import numpy as np

from nspo_jax import metrics, nullspace

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt  # noqa: E402  the backend must be chosen first


def plot_arms(workdir: pathlib.Path, arms: list[str], seeds: list[int]) -> pathlib.Path:
    """Writes `workdir/arms.png`: a panel for harmful-only arms and one for those with replay."""
    regimes = {
        "harmful prompts only": [arm for arm in arms if not _is_replay(arm)],
        "with benign replay": [arm for arm in arms if _is_replay(arm)],
    }
    regimes = {title: names for title, names in regimes.items() if set(names) - {"base"}}
    colours = _colours(arms)
    figure, axes = plt.subplots(
        1, len(regimes), figsize=(6.4 * len(regimes), 5.6), squeeze=False, sharey=True
    )
    for axis, (title, names) in zip(axes[0], regimes.items(), strict=True):
        for arm in names:
            if arm == "base":
                continue
            unsafe, capability = curve(workdir, arm, seeds)
            style = {"color": colours[arm.removesuffix("_replay")]}
            if arm.removesuffix("_replay").startswith("nspo"):
                style["linewidth"] = 2.2
            else:
                style["linestyle"] = "--"
            axis.plot(unsafe, capability, marker=".", markersize=4, label=arm, **style)
            axis.plot(unsafe[-1], capability[-1], marker="o", markersize=8, color=style["color"])
        axis.set_title(title)
        # square-root scales from the good corner: a point near it is worth more than one far away
        axis.set_xscale("function", functions=(_root, np.square))
        axis.set_yscale("function", functions=(lambda y: -_root(100 - y), lambda y: 100 - y**2))
        axis.set_xticks([0, 1, 3, 10, 20, 40, 60, 80])
        axis.set_yticks([50, 60, 70, 80, 90, 95, 97, 99, 100])
        axis.set_xlim(0, 100)
        axis.set_ylim(top=100)
        axis.set_xlabel("unsafe, mean of the four harmful sets (%, square-root scale)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    axes[0][0].set_ylabel("capability: general and borderline (%, square-root scale)")
    figure.suptitle(
        "Capability against safety along training\n"
        f"(dots: evaluations; discs: the end; mean of {len(seeds)} seed{'s' * (len(seeds) > 1)})"
    )
    figure.tight_layout()
    path = workdir / "arms.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def plot_spectra(projectors: nullspace.Projectors, path: pathlib.Path) -> pathlib.Path:
    """Draws every site's eigenvalues, a line a layer, with a dot where the protected ones end."""
    count = len(projectors.spectra)
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 3.8), squeeze=False)
    for axis, (name, spectra) in zip(axes[0], projectors.spectra.items(), strict=True):
        layers = spectra.layers()
        ranks = projectors.sites[name].protected_ranks.reshape(-1)
        for layer, (spectrum, rank) in enumerate(zip(layers, ranks, strict=True)):
            colour = plt.get_cmap("viridis")(layer / max(1, len(layers) - 1))
            shares = np.maximum(spectrum.values / spectrum.trace, 1e-12)
            axis.plot(np.arange(1, len(shares) + 1), shares, color=colour, linewidth=1)
            if 0 < rank:
                axis.plot(rank, shares[rank - 1], marker="o", markersize=4, color=colour)
        axis.set_yscale("log")
        axis.set_title(name)
        axis.set_xlabel("direction")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("share of the inputs' energy")
    figure.suptitle("Input spectra (first layer dark, last bright; dots: the protected end there)")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def plot_calibration(
    predicted: np.ndarray, observed: np.ndarray, path: pathlib.Path
) -> pathlib.Path:
    """Draws how often what a model gives a probability is so.

    Args:
      predicted: probabilities [n].
      observed: bool [n].
      path: of the figure.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


AGAINST = {  # score: its line's name and colour
    "unsafe": ("unsafe", "tab:red"),
    "unsafe_both": ("unsafe, nouns and templates held out", "tab:orange"),
    "over_refusal": ("over-refusal", "tab:purple"),
    "general": ("general", "tab:green"),
}


def plot_against(arms: dict[str, dict], field: str, path: pathlib.Path) -> pathlib.Path:
    """Draws scores against a field of a sweep's grid, with every seed a dot.

    Args:
      arms: a sweep's summary: "ARM,FIELD=VALUE" to scores, a list with a number a seed each.
      field: the field, without what precedes its last dot.
      path: of the figure.

    Raises:
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
    for score, (label, colour) in AGAINST.items():
        if any(score not in scores for scores in points.values()):
            continue
        values = [100 * np.array(scores[score]) for scores in points.values()]
        axis.plot(places, [np.mean(v) for v in values], color=colour, marker="o", label=label)
        for place, seeds in zip(places, values, strict=True):
            axis.plot([place] * len(seeds), seeds, ".", color=colour, alpha=0.5, markersize=5)
    axis.set_xticks(places, list(points))
    axis.set_xlabel(field.replace("_", " "))
    axis.set_ylabel("% (square-root scale; line: mean, dots: seeds)")
    axis.set_yscale("function", functions=(_root, np.square))
    axis.set_yticks([0, 1, 3, 10, 20, 40, 60, 80, 100])
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def curve(workdir: pathlib.Path, arm: str, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Unsafe rate and capability in percent, [evaluations], mean over seeds.

    Where seeds stopped at different steps, the curve goes on while any of them does, the finished
    ones at their last value.
    """
    runs = []
    for seed in seeds:
        rows = metrics.read_metrics(workdir / f"seed_{seed}" / "runs" / arm)
        points = {}
        for row in rows:
            if "evaluation/unsafe" in row:
                kinds = ("unsafe", "unsafe_nouns", "unsafe_templates", "unsafe_both")
                unsafe = np.mean([row[f"evaluation/{kind}"] for kind in kinds])
                capability = row["evaluation/general"]  # the mean of its five families
                if "evaluation/borderline" in row:
                    capability = (5 * capability + row["evaluation/borderline"]) / 6
                points[row["step"]] = (unsafe, capability)
        if not points:
            raise FileNotFoundError(f"No evaluations of {arm} at seed {seed} in {workdir}.")
        runs.append([points[step] for step in sorted(points)])
    longest = max(len(run) for run in runs)
    padded = np.array([run + run[-1:] * (longest - len(run)) for run in runs])
    return tuple(100 * padded.mean(axis=0).T)


def _colours(arms: list[str]) -> dict[str, tuple]:
    names = sorted({arm.removesuffix("_replay") for arm in arms})
    strong = [*plt.get_cmap("tab10").colors, *plt.get_cmap("Dark2").colors]
    return {name: strong[index % len(strong)] for index, name in enumerate(names)}


def _is_replay(arm: str) -> bool:
    """Whether an arm, which a sweep's grid may have added ",FIELD=VALUE" to, replays."""
    return arm.split(",")[0].endswith("_replay")


def _root(values):
    return np.sqrt(np.maximum(values, 0))
