"""Flatten and rebuild the dataclasses of the contract, so that a backend can treat any of them as a list of arrays.

Frozen dataclasses, tuples, lists and mappings are branches. None, bool, int, float, str and enums are static: they
belong to the structure. Everything else is a leaf, an array. A backend that traces (XLA) or captures (CUDA graphs) uses
`flatten` for the arrays it has to hand over and the hashable structure as the key under which it keeps the result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")
_STATIC = (type(None), bool, int, float, str, Enum)


def tree_map(function: Callable[[Any], Any], tree: T) -> T:
    """The same tree with `function` applied to each array."""
    leaves, structure = flatten(tree)
    return unflatten(structure, [function(leaf) for leaf in leaves])  # type: ignore[no-any-return]


def flatten(tree: Any) -> tuple[list[Any], Hashable]:
    """The tree's arrays in a fixed order, and its hashable structure for `unflatten`."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def unflatten(structure: Hashable, leaves: list[Any]) -> Any:
    """The tree of that structure over these arrays; the inverse of `flatten`."""
    return _unflatten(structure, iter(leaves))


def _flatten(tree: Any, leaves: list[Any]) -> Hashable:
    if isinstance(tree, _STATIC):
        # The type belongs to the key: 1, 1.0 and True are equal, and steps compiled for them are not the same.
        return ("static", (type(tree), tree))
    if isinstance(tree, Mapping):
        return ("mapping", tuple((key, _flatten(value, leaves)) for key, value in tree.items()))
    if is_dataclass(tree) and not isinstance(tree, type):
        # Only what __init__ takes: derived fields are derived again.
        names = tuple(field.name for field in fields(tree) if field.init)
        return (type(tree), tuple((name, _flatten(getattr(tree, name), leaves)) for name in names))
    if isinstance(tree, tuple | list):
        kind = "list" if isinstance(tree, list) else "tuple"
        return (kind, tuple(_flatten(value, leaves) for value in tree))
    leaves.append(tree)
    return ("leaf", None)


def _unflatten(structure: Any, leaves: Iterator[Any]) -> Any:
    kind, content = structure
    if kind == "leaf":
        return next(leaves)
    if kind == "static":
        return content[1]
    if kind == "mapping":
        return {key: _unflatten(value, leaves) for key, value in content}
    if kind in ("tuple", "list"):
        values = [_unflatten(value, leaves) for value in content]
        return values if kind == "list" else tuple(values)
    return kind(**{name: _unflatten(value, leaves) for name, value in content})
