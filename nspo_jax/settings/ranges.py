"""The ranges of fields: numbers between two ends, one of some values, or text."""

from collections.abc import Callable, Collection
import dataclasses
import datetime
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Number:
    """Finite numbers between two ends.

    Attributes:
      kind: int, or float, which takes an int as well.
      least: the lower end.
      most: the upper end; None: the largest number of int32 or float32.
      above: True leaves out `least` itself.
      below: True leaves out `most` itself.
      off: a value beside these numbers that switches the field off; None: there is none.
    """

    kind: type
    least: float
    most: float | None = None
    above: bool = False
    below: bool = False
    off: float | None = None

    def holds(self, value: Any) -> bool:
        """Tells whether a value is in the range; NaN, an infinity and a bool never are."""
        if isinstance(value, bool) or not isinstance(value, self._kinds()):
            return False
        if self.off is not None and value == self.off:
            return True
        if self.kind is float:
            value = _to_float32(value)  # computations in float32 would take 1e-50 for 0
        low = value > self.least if self.above else value >= self.least
        most = self._most()
        return low and (value < most if self.below else value <= most)

    def text(self) -> str:
        """Returns the range in words, such as "a finite number above 0 in float32"."""
        off = "" if self.off is None else f"{self.off:g} (off), or "
        if self.kind is int:
            return f"{off}a whole number (int) from {self.least} to {self._most()}"
        low = f"{'above' if self.above else 'of at least'} {self.least:g}"
        high = (
            ""
            if self.most is None
            else f" and {'below' if self.below else 'at most'} {self.most:g}"
        )
        return f"{off}a finite number {low}{high} in float32"

    def _kinds(self) -> tuple[type, ...]:
        return (int,) if self.kind is int else (int, float)

    def _most(self) -> float:
        default = np.iinfo(np.int32).max if self.kind is int else float(np.finfo(np.float32).max)
        return default if self.most is None else self.most


def _to_float32(value: float) -> float:
    try:
        with np.errstate(over="ignore", under="ignore"):
            return float(np.float32(value))
    except OverflowError:  # the int is beyond every float
        return math.inf


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: Collection[Any]

    def holds(self, value: Any) -> bool:
        """Tells whether a value is one of them, and of their type."""
        return any(type(value) is type(known) and value == known for known in self.values)

    def text(self) -> str:
        """Returns the range in words, such as "one of grpo, gspo"."""
        names = [
            "'' (nothing)" if value == "" else value if isinstance(value, str) else repr(value)
            for value in self.values
        ]
        return f"one of {', '.join(names)}"


@dataclasses.dataclass(frozen=True)
class Text:
    """Free text.

    Attributes:
      what: the text's meaning, in words.
      parse: reads the text and raises ValueError if it cannot; None: any text will do.
      empty: True allows "".
    """

    what: str
    parse: Callable[[str], Any] | None = None
    empty: bool = True

    def holds(self, value: Any) -> bool:
        """Tells whether a value is text; raises what `parse` raises."""
        if not isinstance(value, str) or not (value or self.empty):
            return False
        if self.parse is not None:
            self.parse(value)
        return True

    def text(self) -> str:
        """Returns the range in words, such as "text: a path"."""
        return f"text{'' if self.empty else ' that is not empty'}: {self.what}"


Range = Number | Choice | Text


def check_date(date: str, what: str = "data.date") -> None:
    """Raises ValueError unless a date is empty or written as 2026-11-25."""
    try:
        wrong = bool(date) and datetime.date.fromisoformat(date).isoformat() != date
    except ValueError:
        wrong = True
    if wrong:
        raise ValueError(f"{what} is {date!r}; expected a day such as 2026-11-25, or ''.")


def check_project(name: str) -> None:
    """Raises ValueError unless Weights & Biases takes a project's name; "" is no project."""
    if len(name) > 128 or set(name) & set("/\\#?%:"):
        raise ValueError(
            f"metrics.wandb_project is {name!r}; expected at most 128 characters and none of "
            "/ \\ # ? % :, such as safety. WANDB_ENTITY names its owner."
        )
