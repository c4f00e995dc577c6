"""A split of a dataset, or a slice of it: train, train[:40%], train[100:200], train[-10%:]."""

from collections.abc import Iterator
import contextlib
import dataclasses
import re

_PATTERN = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


class SplitError(ValueError):
    """A text that is no split, or a slice that asks for more than there is."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A split by name, from one row up to but without another.

    Attributes:
      name: the split's name.
      start: the first row, a number or a share such as "40%"; negative ones count from the end.
      stop: the row after the last, in the same form.
    """

    name: str
    start: str = "0%"
    stop: str = "100%"

    def __str__(self) -> str:
        start = "" if self.start == "0%" else self.start
        stop = "" if self.stop == "100%" else self.stop
        return f"{self.name}[{start}:{stop}]" if start or stop else self.name

    def check_rows(self, rows: int) -> None:
        """Raises SplitError unless a split of so many rows has all that the slice asks for."""
        for bound in (self.start, self.stop):
            if not bound.endswith("%") and abs(_value(bound)) > rows:
                raise SplitError(
                    f"The split is {str(self)!r}, and {self.name} has {rows} rows: {bound} is "
                    "beyond them."
                )
        start, stop = (_row(bound, rows) for bound in (self.start, self.stop))
        if start >= stop:
            raise SplitError(f"The split {str(self)!r} holds no rows, of {rows}; widen its slice.")


@contextlib.contextmanager
def said_by(field: str) -> Iterator[None]:
    """Adds the name of the split's field to a SplitError from within."""
    try:
        yield
    except SplitError as error:
        raise SplitError(f"{field}: {error}") from error


def parse(text: str) -> Split:
    """Reads a split such as train or train[:40%].

    Raises:
      SplitError: if it is neither, or asks for more than a whole split, or always for nothing.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise SplitError(
            f"The split is {text!r}; expected a name such as train, with a slice if wanted, such "
            "as train[:40%] or train[100:200]."
        )
    start, stop = ("0%" if bound and not _value(bound) else bound for bound in match.groups()[1:])
    split = Split(match[1], start or "0%", stop or "100%")
    for bound in (split.start, split.stop):
        if bound.endswith("%") and abs(_value(bound)) > 100:
            raise SplitError(f"The split is {text!r}: {bound} is more than all of it.")
    if _kind(split.start) == _kind(split.stop) and _value(split.start) >= _value(split.stop):
        raise SplitError(f"The split is {text!r}: its slice ends where it begins, or before.")
    return split


def _value(bound: str) -> int:
    return int(bound.rstrip("%"))


def _kind(bound: str) -> tuple[bool, bool]:
    """Returns the kind of a bound; two of a kind compare before the number of rows is known."""
    return bound.startswith("-"), bound.endswith("%")


def _row(bound: str, rows: int) -> int:
    row = round(_value(bound) * rows / 100) if bound.endswith("%") else _value(bound)
    return row + rows if bound.startswith("-") else row
