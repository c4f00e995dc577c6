"""Rank rules, which decide how many directions of a site's input spectrum are protected.

A rule is written as in a config: `relative_max(5e-4)`, `energy(0.05)`, `absolute(1e-3)` or
`fixed(32)`. `energy(0.05)+mlp/out=fixed(64)` has another rule for some sites.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import NamedTuple

import numpy as np

# Float32 inputs put the noise of a Gram matrix at 1e-8 to 1e-7 of its largest eigenvalue: below
# this threshold a rule would tell noise from noise.
SMALLEST_ALPHA = 1e-6
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class Known(NamedTuple):
    """The known part of one spectrum.

    values: [known] eigenvalues, descending and not negative, all of them or the leading ones;
    size: the number of all; trace: the sum of all, or None.
    """

    values: np.ndarray
    size: int
    trace: float | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of rank rule.

    Attributes:
      argument: the name of its number, such as EPS.
      holds: tells whether it takes a number.
      expected: the numbers that it takes, in words.
      rank: computes the rank of number and spectrum. A rank that is not below the number of known
        eigenvalues means that more of them are needed.
      is_known: True if its number is the rank, before anything is decomposed.
    """

    argument: str
    holds: Callable[[float], bool]
    expected: str
    rank: Callable[[float, Known], int]
    is_known: bool = False


def _above(least: float, known: Known) -> int:
    rank = int(np.sum(known.values >= least))
    return known.size if rank == len(known.values) else rank  # unknown ones may be large enough too


def _energy(share: float, known: Known) -> int:
    values, size, trace = known
    if len(values) == size:
        tail = np.cumsum(values[::-1])  # it holds the energy of the 1, 2, ... smallest directions
        return size - int(np.sum(tail <= share * values.sum()))
    if trace is None:
        raise TypeError("The rule energy needs the trace where eigenvalues are not known.")
    left = trace - np.cumsum(values)  # it holds the energy outside of the 1, 2, ... largest
    enough = left <= share * trace
    return int(np.argmax(enough)) + 1 if enough.any() else size


RULES: dict[str, Rule] = {
    "relative_max": Rule(
        "ALPHA",
        lambda alpha: SMALLEST_ALPHA <= alpha < 1,
        f"alpha in [{SMALLEST_ALPHA:g}, 1): smaller eigenvalues of float32 statistics are "
        "rounding noise",
        lambda alpha, known: _above(alpha * known.values[0], known),
    ),
    "energy": Rule("EPS", lambda share: 0 < share < 1, "a share of energy in (0, 1)", _energy),
    "absolute": Rule(
        "EIGENVALUE", lambda least: 0 < least < np.inf, "a positive eigenvalue", _above
    ),
    "fixed": Rule(
        "RANK",
        lambda rank: rank >= 1 and float(rank).is_integer(),
        "a positive whole rank",
        lambda rank, known: min(int(rank), known.size),
        is_known=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class RankRule:
    """A named rule and its number.

    - `relative_max(alpha)` protects eigenvalues >= alpha * the largest. NSPO's paper (arXiv
      2512.11391) has alpha 5e-4, its code 5e-5. One huge direction makes everything else "null".
    - `energy(eps)` leaves free the smallest directions that together hold at most eps of the trace.
    - `absolute(value)` protects eigenvalues >= value, in squared units of the site's inputs.
    - `fixed(k)` protects the k largest directions.

    Raises:
      ValueError: for an unknown rule or a value out of its range.

    Examples:
      >>> import numpy as np
      >>> import nspo_jax
      >>> rule = nspo_jax.RankRule("energy", 0.05)
      >>> rule == nspo_jax.RankRule.parse("energy(0.05)")
      True
      >>> rule.rank(np.array([90.0, 8.0, 1.5, 0.5]))
      2
    """

    name: str
    value: float

    def __post_init__(self):
        if self.name not in RULES:
            raise ValueError(_unknown(str(self)))
        rule = RULES[self.name]
        if not rule.holds(float(self.value)):
            raise ValueError(f"The rank rule is {str(self)!r}; expected {rule.expected}.")

    @classmethod
    def parse(cls, text: str) -> "RankRule":
        """Reads a rule such as "energy(0.05)".

        Raises:
          ValueError: for an unknown rule or a value out of its range.
        """
        match = re.fullmatch(rf"\s*(\w+)\(\s*({_NUMBER})\s*\)\s*", text)
        if match is None:
            raise ValueError(_unknown(text))
        return cls(match[1], float(match[2]))

    def __str__(self) -> str:
        short = f"{self.value:g}"
        return f"{self.name}({short if float(short) == self.value else repr(float(self.value))})"

    @property
    def known_rank(self) -> int | None:
        """The rank of a rule that knows it before anything is decomposed; else None."""
        return int(self.value) if RULES[self.name].is_known else None

    def rank(
        self, eigenvalues: np.ndarray, *, size: int | None = None, trace: float | None = None
    ) -> int | None:
        """Counts the protected directions of one spectrum.

        Args:
          eigenvalues: [known], descending, all of them or the leading ones.
          size: the number of all.
          trace: the sum of all.

        Returns:
          The rank, or None if it depends on eigenvalues that are not known.
        """
        values = np.maximum(eigenvalues, 0.0)  # rounding makes half of the noise floor negative
        size = len(values) if size is None else size
        rank = RULES[self.name].rank(self.value, Known(values, size, trace))
        return rank if rank < len(values) or len(values) == size else None


@dataclasses.dataclass(frozen=True)
class RankRules:
    """A rule, and other rules for some sites.

    Attributes:
      default: the rule for every site without a pattern.
      overrides: (regular expression, rule) pairs; the first that is found in a site's name counts.

    Examples:
      >>> import nspo_jax
      >>> rules = nspo_jax.RankRules.parse("energy(0.05)+mlp/out=fixed(64)")
      >>> str(rules.of("layers/mlp/out")), str(rules.of("layers/mlp/in"))
      ('fixed(64)', 'energy(0.05)')
    """

    default: RankRule
    overrides: tuple[tuple[str, RankRule], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "RankRules":
        """Reads rules such as "energy(0.05)+mlp/out=fixed(64)+attention=energy(0.1)".

        Raises:
          ValueError: for an unknown rule, a value out of range, or a bad regular expression.
        """
        default, *rest = re.split(r"\+(?![^()]*\))", text)  # the plus of 5e+4 splits nothing
        overrides = []
        for part in rest:
            pattern, found, rule = part.rpartition("=")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"The rank rule is {text!r}; {pattern!r} is no regular expression ({error})."
                ) from error
            if not found or not pattern:
                raise ValueError(
                    f"The rank rule is {text!r}; expected SITE=RULE after the first '+', for "
                    "example energy(0.05)+mlp/out=fixed(64)."
                )
            overrides.append((pattern.strip(), RankRule.parse(rule)))
        return cls(RankRule.parse(default), tuple(overrides))

    def __str__(self) -> str:
        parts = [f"{pattern}={rule}" for pattern, rule in self.overrides]
        return "+".join([str(self.default), *parts])

    def of(self, site: str) -> RankRule:
        """Returns the rule for a site, such as "layers/mlp/out"."""
        found = (rule for pattern, rule in self.overrides if re.search(pattern, site))
        return next(found, self.default)

    def check_sites(self, sites: list[str]) -> None:
        """Raises ValueError naming a pattern that finds none of the sites."""
        idle = [p for p, _ in self.overrides if not any(re.search(p, site) for site in sites)]
        if idle:
            raise ValueError(
                f"The rank rule {str(self)!r} has {', '.join(map(repr, idle))}, which finds no "
                f"site: they are {', '.join(sites)}."
            )


def as_rule(rule: str | RankRule) -> RankRule:
    """Returns a rule that is given as an object or as text; raises errors of `RankRule.parse`."""
    return RankRule.parse(rule) if isinstance(rule, str) else rule


def as_rules(rules: str | RankRule | RankRules) -> RankRules:
    """Returns rules that are given as an object or as text; raises the errors of the parsers."""
    if isinstance(rules, str):
        return RankRules.parse(rules)
    return RankRules(rules) if isinstance(rules, RankRule) else rules


def _unknown(text: str) -> str:
    rules = [f"{name}({rule.argument})" for name, rule in RULES.items()]
    return (
        f"The rank rule is {text!r}; expected {', '.join(rules[:-1])} or {rules[-1]}, for example "
        "energy(0.05)."
    )
