"""Nested dicts of parameters made flat, and back. Flax's own functions have no usable types."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns path, joined by "/", -> leaf, in the tree's order."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict that `flatten` made flat."""
    return traverse_util.unflatten_dict(flat, sep="/")
