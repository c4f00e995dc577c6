"""Rank rules: how many directions of a site's input spectrum are protected.

A rule is written as in a config: `relative_max(5e-4)`, `energy(0.05)`, `absolute(1e-3)` or
`fixed(32)`; with other rules for some sites as `energy(0.05)+mlp/out=fixed(64)`.
"""

import dataclasses
import re

import numpy as np

# Float32 inputs put the noise of a Gram matrix at 1e-8 to 1e-7 of its largest eigenvalue: below
# this threshold a rule would tell noise from noise.
SMALLEST_ALPHA = 1e-6
NAMES = ("relative_max", "energy", "absolute", "fixed")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclasses.dataclass(frozen=True)
class RankRule:
    """A named rule and its number.

    - `relative_max(alpha)`: protect eigenvalues >= alpha * the largest. NSPO's paper (arXiv
      2512.11391) has alpha 5e-4, its code 5e-5. One huge direction makes everything else "null".
    - `energy(eps)`: leave free the smallest directions that together hold at most eps of the trace.
    - `absolute(value)`: protect eigenvalues >= value, in squared units of the site's inputs.
    - `fixed(k)`: protect the k largest directions.

    Raises:
      ValueError: for an unknown rule or a value out of its range.

    >>> rule = RankRule("energy", 0.05)
    >>> rule == RankRule.parse("energy(0.05)"), rule.rank(np.array([90.0, 8.0, 1.5, 0.5]))
    (True, 2)
    """

    name: str
    value: float

    def __post_init__(self):
        name, value, text = self.name, float(self.value), str(self)
        if name not in NAMES:
            raise ValueError(_unknown(text))
        if name == "relative_max" and not SMALLEST_ALPHA <= value < 1:
            raise ValueError(
                f"The rank rule is {text!r}; alpha must be in [{SMALLEST_ALPHA:g}, 1): smaller "
                "eigenvalues of float32 statistics are rounding noise."
            )
        if name == "energy" and not 0 < value < 1:
            raise ValueError(f"The rank rule is {text!r}; expected a share of energy in (0, 1).")
        if name == "absolute" and not 0 < value < np.inf:
            raise ValueError(f"The rank rule is {text!r}; expected a positive eigenvalue.")
        if name == "fixed" and not (value >= 1 and value.is_integer()):
            raise ValueError(f"The rank rule is {text!r}; expected a positive whole rank.")

    @classmethod
    def parse(cls, text: str) -> "RankRule":
        """Reads "energy(0.05)".

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

    def rank(
        self, eigenvalues: np.ndarray, *, size: int | None = None, trace: float | None = None
    ) -> int | None:
        """The number of protected directions of one spectrum.

        Args:
          eigenvalues: [known], descending: all of them, or the leading ones.
          size: the number of all.
          trace: the sum of all.

        Returns:
          The rank, or None where it hangs on eigenvalues that are not known.
        """
        values = np.maximum(eigenvalues, 0.0)  # rounding makes half of the noise floor negative
        size = len(values) if size is None else size
        if self.name == "fixed":
            rank = min(int(self.value), size)
        elif self.name == "energy" and len(values) == size:
            tail = np.cumsum(values[::-1])  # the energy of the 1, 2, ... smallest directions
            rank = size - int(np.sum(tail <= self.value * values.sum()))
        elif self.name == "energy":
            if trace is None:
                raise TypeError("The rule energy needs the trace where eigenvalues are not known.")
            left = trace - np.cumsum(values)  # outside of the 1, 2, ... largest
            enough = left <= self.value * trace
            rank = int(np.argmax(enough)) + 1 if enough.any() else size
        else:
            least = self.value * values[0] if self.name == "relative_max" else self.value
            rank = int(np.sum(values >= least))
            rank = size if rank == len(values) else rank  # the next may be large enough too
        return rank if rank < len(values) or len(values) == size else None


@dataclasses.dataclass(frozen=True)
class RankRules:
    """A rule, and other rules for some sites.

    Attributes:
      default: of every site that no pattern finds.
      overrides: (regular expression, rule) pairs; the first that is found in a site's name counts.

    >>> rules = RankRules(RankRule("energy", 0.05), (("mlp/out", RankRule("fixed", 64)),))
    >>> str(rules), str(rules.of("layers/mlp/out"))
    ('energy(0.05)+mlp/out=fixed(64)', 'fixed(64)')
    """

    default: RankRule
    overrides: tuple[tuple[str, RankRule], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "RankRules":
        """Reads "energy(0.05)+mlp/out=fixed(64)+attention=energy(0.1)".

        Raises:
          ValueError: for an unknown rule, a value out of range, or a pattern that is none.
        """
        default, *rest = re.split(r"\+(?![^()]*\))", text)  # not the plus of 5e+4
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
        """The rule for a site, such as "layers/mlp/out"."""
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
    """A rule that is given as an object, or as its text; raises ValueError as `RankRule.parse`."""
    return RankRule.parse(rule) if isinstance(rule, str) else rule


def as_rules(rules: str | RankRule | RankRules) -> RankRules:
    """Rules that are given as an object, or as their text; errors are those of the parsers."""
    if isinstance(rules, str):
        return RankRules.parse(rules)
    return RankRules(rules) if isinstance(rules, RankRule) else rules


def _unknown(text: str) -> str:
    return (
        f"The rank rule is {text!r}; expected relative_max(ALPHA), energy(EPS), absolute(VALUE) or "
        "fixed(RANK), for example energy(0.05)."
    )
