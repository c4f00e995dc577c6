"""Nested dicts of parameters as flat ones, by path, and back."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Path, joined by "/", -> leaf, in the tree's order."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict that `flatten` made flat."""
    return traverse_util.unflatten_dict(flat, sep="/")
