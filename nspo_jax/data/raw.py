"""Rows of published data files, each with its line: csv, JSON lines, JSON, parquet, also packed.

Anything that cannot be read as a row goes on a list with its place and the reason; nothing is
skipped.
"""

from collections.abc import Iterator, Sequence
import csv
import dataclasses
import gzip
import io
import json
import lzma
import pathlib
import re
from typing import Any
import zlib

import pyarrow
from pyarrow import parquet

SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
PACKED = {".gz": gzip.open, ".xz": lzma.open}
PANDAS_INDEX = r"__index_level_\d+__"
# Python's own limit is 131,072 characters a cell: a longer one would be lost, and its tail be read
# as rows. This limit is the largest that a C long holds on every platform.
csv.field_size_limit(2**31 - 1)


class SourceError(ValueError):
    """A fault of an original file; the message names the file and the fix."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
      line: the file's line in which the row begins, from 1; in a parquet file, the row's number.
      value: its fields by name, or whatever else the JSON holds.
    """

    line: int
    value: Any


@dataclasses.dataclass
class Problems:
    """Rows that break a schema, all counted, and the first of every file kept with their places.

    Attributes:
      counts: file -> number of broken rows.
      examples: (file, line, reason), at most KEPT a file.
    """

    KEPT = 100

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)

    def add(self, file: str, line: int, reason: str) -> None:
        """Counts one broken row."""
        self.counts[file] = self.counts.get(file, 0) + 1
        if self.counts[file] <= self.KEPT:
            self.examples.append((file, line, reason))

    @property
    def total(self) -> int:
        """The number of broken rows."""
        return sum(self.counts.values())


def suffix(path: pathlib.Path) -> str:
    """Returns the format in a file's name, without its packing; "" if it is not read here."""
    name = path.with_suffix("") if path.suffix in PACKED else path
    return name.suffix.lower() if name.suffix.lower() in SUFFIXES else ""


def read(
    path: pathlib.Path, name: str, problems: Problems, columns: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yields the rows of a file.

    Args:
      path: the file.
      name: its name in messages.
      problems: collects everything that cannot be read as a row.
      columns: the columns of a csv file without a header.

    Raises:
      SourceError: if the file as a whole cannot be read.
    """
    kind = suffix(path)
    try:
        if kind == ".parquet":
            table = parquet.read_table(path)
            # these are pandas' row numbers, which no published schema has
            index = [name for name in table.column_names if re.fullmatch(PANDAS_INDEX, name)]
            table = table.drop_columns(index)
            yield from (Row(i, value) for i, value in enumerate(table.to_pylist(), start=1))
            return
        content = _content(path)
        if kind == ".csv":
            yield from _read_csv(content, name, problems, columns)
        elif kind == ".jsonl":
            yield from _read_lines(content, name, problems)
        else:
            yield from _read_json(content, name)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pyarrow.ArrowInvalid) as error:
        raise SourceError(
            f"{name} is damaged or not what its name says ({error}). Fetch it again."
        ) from error


def first_cells(path: pathlib.Path) -> list[str]:
    """Returns the cells of a csv file's first row, which may be its header."""
    lines = io.StringIO(_text(_content(path), path.name), newline="")
    return next(csv.reader(lines), [])


def _content(path: pathlib.Path) -> bytes:
    with PACKED.get(path.suffix, open)(path, "rb") as file:
        return file.read()


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SourceError(f"Line {line} of {name} is not UTF-8 ({error}). Convert it.") from error


def _read_csv(
    content: bytes, name: str, problems: Problems, columns: Sequence[str] | None
) -> Iterator[Row]:
    # without strict an unclosed quote would swallow the rest of the file into one cell
    reader = csv.reader(io.StringIO(_text(content, name), newline=""), strict=True)
    fields = columns
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(name, line, f"is not csv: {error}")
            continue
        if fields is None:
            fields = cells
        elif len(cells) == len(fields):
            yield Row(line, dict(zip(fields, cells, strict=True)))
        elif cells:  # an empty line is no row
            problems.add(name, line, f"has {len(cells)} cells, expected {len(fields)}")


def _read_lines(content: bytes, name: str, problems: Problems) -> Iterator[Row]:
    # str.splitlines would also cut at U+2028, which JSON allows inside a string
    for line, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if text.strip():
            try:
                yield Row(line, json.loads(text.decode("utf-8")))
            except ValueError as error:
                problems.add(name, line, f"is not JSON: {error}")


def _read_json(content: bytes, name: str) -> Iterator[Row]:
    """Yields the objects of one list, of several lists after each other, or of no list."""
    text = _text(content, name)
    decoder = json.JSONDecoder()
    position, line = 0, 1

    def skip(characters: str) -> int:
        end = position
        while end < len(text) and text[end] in characters:
            end += 1
        return end

    while True:
        start = skip(" \t\r\n[],")
        line += text.count("\n", position, start)
        if start == len(text):
            return
        try:
            value, position = decoder.raw_decode(text, start)
        except ValueError as error:
            raise SourceError(f"{name} is not JSON: {error}. Nothing after it is read.") from error
        yield Row(line, value)
        line += text.count("\n", start, position)
