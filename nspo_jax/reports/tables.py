"""Tables of scores, epochs, projectors and rank rules, for people to read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nspo_jax import nullspace
from nspo_jax.reports import intervals

# score -> its column in percent, for means of parts and for summaries without columns of their own
COLUMNS = {
    "unsafe": {"label": "unsafe", "lower_is_better": True},
    "unsafe_nouns": {"label": "nouns", "lower_is_better": True},
    "unsafe_templates": {"label": "templates", "lower_is_better": True},
    "unsafe_both": {"label": "both", "lower_is_better": True},
    "over_refusal": {"label": "over-refusal", "lower_is_better": True},
    "general": {"label": "general", "lower_is_better": False},
}
SMALL = (("kl_heldout", "KL held-out", np.max), ("protected_share", "in protected", np.max))
_ENOUGH = 6  # from so many seeds on, the worst one gets a number of its own


def format_scores(arms: Mapping[str, Mapping[str, Any]], *, markdown: bool = False) -> str:
    """Formats scores as a row an arm, with intervals, and a line that names the interval.

    Rates are in percent. Several seeds give the median, the interval of the median over seeds
    (which includes the sampling of prompts and answers) and, from six seeds on, the worst one. A
    single run gives each rate with Wilson's interval for its number of prompts in `counts`.

    Args:
      arms: arm -> scores; a score is a number, or a list with one value a seed. `counts` maps a
        rate to the number of prompts that it is the share of. `columns` maps it to `label` and
        `lower_is_better` of its column.
      markdown: writes pipes, for a README.
    """
    columns = [
        (name, column["label"], _percent, np.max if column["lower_is_better"] else np.min)
        for name, column in _columns(arms).items()
    ]
    columns += [(k, label, _scientific, worst) for k, label, worst in SMALL]
    known = {name for name, *_ in columns} | {"seconds", "step", "seeds", "kl_calibration"}
    first = next(iter(arms.values()), {})
    known |= first.get("counts", {}).keys()
    extra = [
        key
        for key, value in first.items()
        if key not in known and "/" not in key and not isinstance(value, Mapping)
    ]
    columns += [(key, key.replace("_", " "), _plain, np.max) for key in extra]
    columns = [column for column in columns if any(column[0] in row for row in arms.values())]
    rows = [["arm", *(label for _, label, _, _ in columns)]]
    counted = False
    for arm, scores in arms.items():
        counts = scores.get("counts", {})
        counts = {name: int(np.min(count)) for name, count in counts.items()}
        counted |= bool(counts)
        rows.append(
            [
                arm,
                *(
                    _cell(scores.get(n), form, worst, counts.get(n))
                    for n, _, form, worst in columns
                ),
            ]
        )
    numbers = [value for row in arms.values() for value in row.values() if np.ndim(value)]
    caption = _caption(max((len(value) for value in numbers), default=1), counted)
    table = format_table(rows, markdown=markdown)
    return f"{table}\n\n{caption}" if caption else table


def _columns(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns COLUMNS and the columns of the first summary that names some, the first seed's."""
    said = next((scores["columns"] for scores in arms.values() if "columns" in scores), {})
    found = {
        name: {key: value[0] if isinstance(value, list) else value for key, value in column.items()}
        for name, column in said.items()
    }
    return found | {name: column for name, column in COLUMNS.items() if name not in found}


def format_epochs(lines: Sequence[Mapping[str, float]]) -> str:
    """Formats a reward model's training as a row an epoch."""
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
    """Formats projectors as a row a site and layer: the protected and the free directions."""
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
    """Formats `nullspace.preview` as a row a rank rule and site, over the site's layers."""
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


def format_table(rows: Sequence[Sequence[str]], *, left: int = 1, markdown: bool = False) -> str:
    """Aligns columns, the first `left` to the left; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    separator = " | " if markdown else "  "
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(separator.join(cells))
    if markdown:
        lines = [f"| {line} |" for line in lines]
        rule = ["-" * width for width in widths[:left]]
        rule += ["-" * (width - 1) + ":" for width in widths[left:]]
        lines.insert(1, f"| {separator.join(rule)} |")
    else:
        lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _range(low: float, high: float, form: str) -> str:
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


def _cell(value: Any, form: Callable[[float], str], worst: Callable, count: int | None) -> str:
    """Formats a number with its interval; see `format_scores`."""
    if value is None:
        return ""
    values = np.atleast_1d(np.asarray(value, np.float64))
    if len(values) > 1:
        low, high, _ = intervals.median_interval(values)
        last = f"; {form(worst(values))}" if len(values) >= _ENOUGH else ""
        return f"{form(np.median(values))} ({form(low)} to {form(high)}{last})"
    if count:
        low, high = intervals.share_interval(values[0], count)
        return f"{form(values[0])} ({form(low)} to {form(high)})"
    return form(values[0])


def _caption(seeds: int, counted: bool) -> str:
    """Explains the brackets of a table; "" if there are none."""
    if seeds > 1:
        _, _, coverage = intervals.median_interval(range(seeds))
        if seeds >= _ENOUGH:
            inside = f"{coverage:.0%} interval of the median; worst seed"
        else:
            inside = f"smallest to largest, which is a {coverage:.0%} interval of the median"
        return f"Median over {seeds} seeds ({inside.replace('%', ' %')})."
    if counted:
        return f"One seed ({intervals.CONFIDENCE:.0%} interval of the sample of prompts).".replace(
            "%", " %"
        )
    return ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _scientific(value: float) -> str:
    return f"{value:.1e}"


def _plain(value: float) -> str:
    return f"{value:.3f}"
