"""Parameter trees and the "/"-joined paths of their leaves.

Flax's own functions to flatten a tree have no usable types.
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns path -> leaf, in the tree's order."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict that `flatten` made flat."""
    return traverse_util.unflatten_dict(flat, sep="/")


def is_stacked(path: str) -> bool:
    """Tells whether a parameter or an input site is stacked over layers, on its first axis."""
    return path.startswith("layers/")


def is_matrix(path: str, leaf: Any) -> bool:
    """Tells whether a parameter is a matrix, or a stack of matrices over layers."""
    return leaf.ndim >= (3 if is_stacked(path) else 2)
