"""Writes the table of all fields into docs/configuration.md.

    python -m scripts.document_config

The fields come from `nspo_jax.settings`, and the names of parts of the library from
`nspo_jax.rl.ranges`. tests/test_docs.py fails when the page is behind.
"""

import itertools
import pathlib
import re

from nspo_jax import settings
from nspo_jax.rl import ranges
from scripts import launch

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
START, END = "<!-- fields: python -m scripts.document_config -->", "<!-- end of fields -->"


def main() -> None:
    """Rewrites the page."""
    PAGE.write_text(insert(PAGE.read_text()))
    print(f"{len(ranges.FIELDS)} fields are in {PAGE.relative_to(ROOT)}.")


def insert(page: str) -> str:
    """Returns the page with the present tables between its two markers."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{render()}\n{END}{after}"


def render() -> str:
    """Returns Markdown: a table for each group of settings, in the order of their declaration."""
    values = settings.flatten(settings.Run())
    parts = []
    for group, fields in itertools.groupby(values, lambda name: name.rpartition(".")[0]):
        rows = [
            f"| `{name}` | {_value(values[name])} | {_cell(_range(ranges.FIELDS[name]))} "
            f"| {_cell(settings.WHAT[name])} |"
            for name in fields
        ]
        head = ["| field | default | values | what it does |", "|---|---|---|---|"]
        note = settings.NOTES[group]
        parts.append("\n".join([f"### {group or 'The run'}", "", note, "", *head, *rows, ""]))
    return "\n".join(parts)


def _value(value: object) -> str:
    return f"`{value!r}`" if isinstance(value, str) else f"`{value}`"


def _range(known: settings.Range) -> str:
    if isinstance(known, settings.Choice):
        return ", ".join(f"`{value}`" if value != "" else "`''`" for value in known.values)
    if isinstance(known, settings.Text):
        return known.what if known.empty else f"{known.what}; not empty"
    kind = "whole number" if known.kind is int else "number"
    low = f"{'above' if known.above else 'from'} {known.least:g}"
    high = ""
    if known.most is not None:
        most = str(known.most) if known.kind is int else f"{known.most:g}"
        high = f" {'below' if known.below else 'to'} {most}"
    off = "" if known.off is None else f"; or {known.off:g}"
    return f"{kind} {low}{high}{off}"


def _cell(text: str) -> str:
    """Escapes a text, so that Markdown shows it literally."""
    return re.sub(r"(?<!`)([\[\]|<>*])", r"\\\1", text)


if __name__ == "__main__":
    launch.run(main)
