"""Readers of a row's fields, which raise a SchemaError for a value against the schema."""

from collections.abc import Iterable, Mapping
from typing import Any


class SchemaError(ValueError):
    """The reason why a row breaks its schema."""


def text(row: Mapping[str, Any], name: str, *, blank: bool = False) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise SchemaError(f"{name} is {value!r}, expected text")
    if not blank and not value.strip():
        raise SchemaError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write a lone surrogate
        raise SchemaError(f"{name} is not valid Unicode ({error.reason})") from error
    return value


def boolean(row: Mapping[str, Any], name: str) -> bool:
    if not isinstance(row[name], bool):
        raise SchemaError(f"{name} is {row[name]!r}, expected true or false")
    return row[name]


def one_of(row: Mapping[str, Any], name: str, allowed: tuple[Any, ...]) -> Any:
    value = row[name]
    if isinstance(value, bool) or value not in allowed:
        raise SchemaError(f"{name} is {value!r}, expected one of {', '.join(map(str, allowed))}")
    return value


def flags(row: Mapping[str, Any], name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    value = row[name]
    if not isinstance(value, dict) or value.keys() != set(names):
        odd = set(value) ^ set(names) if isinstance(value, dict) else value
        raise SchemaError(f"{name} has not the {len(names)} categories, but for {odd!r}")
    for category in names:
        boolean(value, category)
    return tuple(category for category in names if value[category])


def exactly(row: Mapping[str, Any], names: Iterable[str]) -> None:
    unknown = row.keys() - set(names)
    if unknown:  # the schema would drop a published field
        raise SchemaError(f"has the unknown fields {', '.join(sorted(unknown))}")


def list_of(row: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(row[name], list):
        raise SchemaError(f"{name} is {row[name]!r}, expected a list")
    return row[name]
