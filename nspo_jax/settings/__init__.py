"""The settings of a run, typed: frozen dataclasses inside the package, a ConfigDict outside of it.

config = default.get_config()             # flags and config files change it
run = settings.from_config(config)        # the package takes it, or groups of it
run.rl.steps                              # --config.rl.steps
settings.replace(run, {"rl.steps": 3})
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import ml_collections

from nspo_jax.settings import groups
from nspo_jax.settings.ranges import Choice, Number, Range, Text, check_date
from nspo_jax.settings.run import RL, Rewards, Run

__all__ = [
    "FIELDS",
    "NOTES",
    "RL",
    "WHAT",
    "Choice",
    "Number",
    "Range",
    "Rewards",
    "Run",
    "Text",
    "check_date",
    "check_ranges",
    "fields_of",
    "flatten",
    "from_config",
    "from_flat",
    "get",
    "groups",
    "replace",
    "to_config",
]


def _groups(made: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yields (prefix of the fields' dotted names, class) of a group and of the groups in it."""
    yield prefix, made
    for field in dataclasses.fields(made):
        if not field.metadata:
            yield from _groups(field.default_factory, f"{prefix}{field.name}.")  # pyright: ignore[reportArgumentType]  # a class


_FIELDS = {
    prefix + field.name: field
    for prefix, made in _groups(Run)
    for field in dataclasses.fields(made)
    if field.metadata
}
# dotted name -> a group's docstring
NOTES = {prefix.rstrip("."): (made.__doc__ or "").strip() for prefix, made in _groups(Run)}
FIELDS: dict[str, Range] = {name: field.metadata["range"] for name, field in _FIELDS.items()}
WHAT: dict[str, str] = {name: field.metadata["what"] for name, field in _FIELDS.items()}


def flatten(run: Run) -> dict[str, Any]:
    """Returns a run's values by dotted field name, in the order of their declaration."""
    return {name: get(run, name) for name in FIELDS}


def from_flat(values: Mapping[str, Any]) -> Run:
    """Makes a run with these values of dotted fields; the others have their defaults.

    Raises:
      ValueError: naming every unknown field, or every value out of its range.
    """
    if unknown := [name for name in values if name not in FIELDS]:
        raise ValueError(
            f"The config has the field {', '.join(unknown)}, which nothing reads: delete it. "
            "docs/configuration.md lists every field."
        )
    check_ranges(values, FIELDS)
    return _build(Run, values)


def from_config(config: ml_collections.ConfigDict) -> Run:
    """Reads the settings of a config.

    Raises:
      ValueError: naming every field that is missing, unknown, or out of its range.
    """
    values = _flatten_config(config)
    if missing := [name for name in FIELDS if name not in values]:
        raise ValueError(
            f"The config has no field {', '.join(missing)}: begin with default.get_config() of "
            "configs/default.py, which has all of them."
        )
    return from_flat(values)


def to_config(run: Run) -> ml_collections.ConfigDict:
    """Returns the settings as a ConfigDict, for config files and flags."""
    return ml_collections.ConfigDict(dataclasses.asdict(run))


def replace(run: Run, changes: Mapping[str, Any]) -> Run:
    """Returns the run with other values of some dotted fields; raises the errors of `from_flat`."""
    return from_flat(flatten(run) | dict(changes))


def check_ranges(values: Mapping[str, Any], known: Mapping[str, Range]) -> None:
    """Raises ValueError naming every value that is out of its range."""
    wrong = []
    for name, value in values.items():
        if name not in known:
            continue
        try:
            if not known[name].holds(value):
                wrong.append(f"{name} is {value!r}; expected {known[name].text()}.")
        except ValueError as error:
            wrong.append(str(error) if name in str(error) else f"{name}: {error}")
    if wrong:
        raise ValueError(" ".join(wrong))


def fields_of(group: str) -> tuple[str, ...]:
    """Returns the dotted names of a group's fields, such as those of rewards.judge."""
    return tuple(name for name in FIELDS if name.startswith(f"{group}."))


def get(run: Run, name: str) -> Any:
    """Returns the value of a dotted field, such as rl.steps."""
    value: Any = run
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _build(made: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    arguments = {}
    for field in dataclasses.fields(made):
        name = prefix + field.name
        if not field.metadata:
            arguments[field.name] = _build(field.default_factory, values, f"{name}.")  # pyright: ignore[reportArgumentType]  # a class
        elif name in values:
            arguments[field.name] = values[name]
    return made(**arguments)


def _flatten_config(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= _flatten_config(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
