"""Flatten and rebuild the dataclasses of the contract, so that a backend can treat any of them as a list of arrays.

Frozen dataclasses, tuples, lists and mappings are branches. None, bool, int, float, str and enums are static: they
belong to the structure. Everything else is a leaf, an array. A backend that traces (XLA) or captures (CUDA graphs) uses
`flatten` for the arrays it has to hand over and the hashable structure as the key under which it keeps the result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
_STATIC = (type(None), bool, int, float, str, Enum)


class _Branch(Enum):
    LEAF = "leaf"
    STATIC = "static"
    MAPPING = "mapping"
    DATACLASS = "dataclass"
    TUPLE = "tuple"
    LIST = "list"


_LEAF = (_Branch.LEAF, None)


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
    kind: Any = type(tree)
    match _branch(kind):
        case _Branch.LEAF:
            leaves.append(tree)
            return _LEAF
        case _Branch.STATIC:
            # The type belongs to the key: 1, 1.0 and True are equal, and steps compiled for them are not the same.
            return (_Branch.STATIC, (kind, tree))
        case _Branch.DATACLASS:
            return (kind, tuple([_flatten(getattr(tree, name), leaves) for name in _names(kind)]))
        case _Branch.MAPPING:
            return (_Branch.MAPPING, tuple([(key, _flatten(value, leaves)) for key, value in tree.items()]))
        case branch:
            return (branch, tuple([_flatten(value, leaves) for value in tree]))


def _unflatten(structure: Any, leaves: Iterator[Any]) -> Any:
    kind, content = structure
    if kind is _Branch.LEAF:
        return next(leaves)
    if kind is _Branch.STATIC:
        return content[1]
    if kind is _Branch.MAPPING:
        return {key: _unflatten(value, leaves) for key, value in content}
    values = [_unflatten(value, leaves) for value in content]
    if kind is _Branch.LIST:
        return values
    if kind is _Branch.TUPLE:
        return tuple(values)
    return kind(**dict(zip(_names(kind), values, strict=True)))


@cache  # steps are taken apart and put together all the time, and there are few types
def _branch(kind: Any) -> _Branch:
    if issubclass(kind, _STATIC):
        return _Branch.STATIC
    if issubclass(kind, Mapping):
        return _Branch.MAPPING
    if is_dataclass(kind):
        return _Branch.DATACLASS
    if issubclass(kind, tuple):
        return _Branch.TUPLE
    return _Branch.LIST if issubclass(kind, list) else _Branch.LEAF


@cache
def _names(kind: Any) -> tuple[str, ...]:
    """Only what __init__ takes: derived fields are derived again."""
    return tuple(field.name for field in fields(kind) if field.init)
