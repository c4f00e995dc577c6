"""Writes the table of all fields into docs/configuration.md.

    python -m scripts.document_config

Names, defaults and comments come from configs/default.py, ranges from `nspo_jax.rl.ranges.FIELDS`.
tests/test_docs.py says when the page is behind.
"""

import io
import itertools
import pathlib
import re
import tokenize

from configs import default
from nspo_jax import run_directory
from nspo_jax.rl import ranges
from scripts import launch

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
START, END = "<!-- fields: python -m scripts.document_config -->", "<!-- end of fields -->"
_NAME = re.compile(r"\s*config\.([\w.]+) = ")


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
    """Returns Markdown: a table for each section of the config, in the order of the file."""
    config = default.get_config()
    ranges.check_fields(config)  # each field has a range, and each range a field
    values = run_directory.flatten(config)
    comments = read_comments((ROOT / "configs" / "default.py").read_text())
    names = [name for name in comments if name in values]
    parts = []
    for section, fields in itertools.groupby(names, lambda name: name.rpartition(".")[0]):
        title = f"### {section or 'The run'}"
        note = comments.get(section, "")
        rows = [
            f"| `{name}` | {_value(values[name])} | {_cell(_range(ranges.FIELDS[name]))} "
            f"| {_cell(comments[name])} |"
            for name in fields
        ]
        head = ["| field | default | values | comment |", "|---|---|---|---|"]
        parts.append("\n".join([title, "", *([_cell(note), ""] if note else []), *head, *rows, ""]))
    return "\n".join(parts)


def read_comments(source: str) -> dict[str, str]:
    """Returns the comment of each `config.NAME = ...`, sections included, in the file's order.

    A comment begins on the lines of the assignment, and goes on in lines that hold `#   more`.
    """
    comments, name = {}, ""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and (match := _NAME.match(lines[token.start[0] - 1])):
            name = match[1]
            comments.setdefault(name, "")
        elif token.type == tokenize.COMMENT and name:
            is_alone = lines[token.start[0] - 1].lstrip().startswith("#")
            if not is_alone or token.string.startswith("#   "):
                comments[name] = f"{comments[name]} {token.string[1:].strip()}".strip()
            else:
                name = ""  # a line about what follows
    return comments


def _value(value: object) -> str:
    return f"`{value!r}`" if isinstance(value, str) else f"`{value}`"


def _range(known: ranges.Range) -> str:
    if isinstance(known, ranges.Choice):
        return ", ".join(f"`{value}`" if value != "" else "`''`" for value in known.values)
    if isinstance(known, ranges.Text):
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
    """Returns text as Markdown reads it literally."""
    return re.sub(r"(?<!`)([\[\]|<>*])", r"\\\1", text)


if __name__ == "__main__":
    launch.run(main)
