"""Tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nspo_jax import nullspace

PERCENT = (
    ("unsafe", "unsafe"),
    ("unsafe_nouns", "nouns"),
    ("unsafe_templates", "templates"),
    ("unsafe_both", "both"),
    ("over_refusal", "over-refusal"),
    ("general", "general"),
)
SMALL = (("kl_heldout", "KL held-out"), ("protected_share", "in protected"))


def format_scores(arms: Mapping[str, Mapping[str, Any]], *, markdown: bool = False) -> str:
    """A row an arm: rates in percent, mean +- standard deviation (ddof 1) where there are seeds.

    Args:
      arms: arm -> scores; a score is a number, or a list with one value a seed.
      markdown: with pipes, for a README.
    """
    columns = [(k, label, _percent) for k, label in PERCENT]
    columns += [(k, label, _scientific) for k, label in SMALL]
    rest = ("families", "seconds", "step", "seeds", *(name for name, _, _ in columns))
    extra = [
        key
        for key in next(iter(arms.values()), {})
        if key not in rest and key not in ("borderline", "kl_calibration")
    ]
    columns += [(key, key.replace("_", " "), _plain) for key in extra]
    columns = [column for column in columns if any(column[0] in row for row in arms.values())]
    rows = [["arm", *(label for _, label, _ in columns)]]
    for arm, scores in arms.items():
        rows.append([arm, *(_cell(scores.get(name), form) for name, _, form in columns)])
    return format_table(rows, markdown=markdown)


def format_epochs(lines: Sequence[Mapping[str, float]]) -> str:
    """A row an epoch of a reward model's training."""
    names = list(lines[0])
    rows = [[name.replace("_", " ") for name in names]]
    for line in lines:
        shares = [name.endswith(("accuracy", "recall")) for name in names]
        rows.append([
            f"{100 * line[name]:.1f} %" if share else f"{line[name]:.4g}"
            for name, share in zip(names, shares, strict=True)
        ])  # fmt: skip
    return format_table(rows)


def format_projectors(projectors: nullspace.Projectors) -> str:
    """A row a site and layer: what is protected and what is left free."""
    rows = [["site", "layer", "in", "rank", "free", "energy", "gap", "KiB", "side stored"]]
    summary = projectors.summary()
    for row in summary:
        rows.append([
            row["site"],
            "" if row["layer"] is None else str(row["layer"]),
            str(row["in"]),
            str(row["rank"]),
            f"{row['free']:.0%}",
            f"{row['energy']:.4f}",
            f"{row['gap']:.2f}",
            f"{row['bytes'] / 1024:.0f}",
            projectors.sites[row["site"]].side,
        ])  # fmt: skip
    provenance = nullspace.format_provenance(projectors.provenance)
    size = sum(row["bytes"] for row in summary) / 2**20
    return f"{format_table(rows)}\n{size:.1f} MiB; {provenance}"


def format_rules(rules: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row a rank rule and site: what `nullspace.preview` says, over the site's layers."""
    table = [["rule", "site", "in", "rank", "free", "energy", "gap", "MiB"]]
    for rule, rows in rules.items():
        for site in dict.fromkeys(row["site"] for row in rows):
            layers = [row for row in rows if row["site"] == site]
            ranks, gaps = ([row[name] for row in layers] for name in ("rank", "gap"))
            table.append([
                rule,
                site,
                str(layers[0]["in"]),
                _range(min(ranks), max(ranks), "d"),
                f"{np.mean([row['free'] for row in layers]):.0%}",
                f"{np.mean([row['energy'] for row in layers]):.4f}",
                _range(np.nanmin(gaps), np.nanmax(gaps), ".2f") if np.isfinite(gaps).any() else "",
                f"{sum(row['bytes'] for row in layers) / 2**20:.1f}",
            ])  # fmt: skip
        total = sum(row["bytes"] for row in rows) / 2**20
        table.append([rule, "all", "", "", "", "", "", f"{total:.1f}"])
    return format_table(table)


def format_table(rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Aligns columns; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    separator = " | " if markdown else "  "
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(separator.join(cells))
    if markdown:
        lines = [f"| {line} |" for line in lines]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines.insert(1, f"| {separator.join(rule)} |")
    else:
        lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _range(low: float, high: float, form: str) -> str:
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


def _cell(value: Any, form) -> str:
    if value is None:
        return ""
    values = np.atleast_1d(np.asarray(value, np.float64))
    return form(values.mean(), values.std(ddof=1) if len(values) > 1 else None)


def _percent(mean: float, spread: float | None) -> str:
    return f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _scientific(mean: float, spread: float | None) -> str:
    del spread
    return f"{mean:.1e}"


def _plain(mean: float, spread: float | None) -> str:
    return f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
