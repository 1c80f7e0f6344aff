"""How far a result may be off: one table for all backends, and a backend's own overrides, each with its reason."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from octavo.backend import DType, Ops

LARGEST_FACTOR = 100.0
"""An override may be at most this many times the table's figure: beyond it an operation is wrong, not inexact."""

OPERATIONS = (*sorted(name for name in vars(Ops) if not name.startswith("_")), "model", "kv_cache")
"""What has a tolerance: each operation of the contract, whole models, and the rounding of a KV cache."""


@dataclass(frozen=True, slots=True)
class Override:
    """A tolerance that a backend needs, and why."""

    op: str
    dtype: DType
    nmse: float
    reason: str


class Tolerances:
    """The table with one backend's overrides.

    Raises ValueError for an override of what is no operation, of an entry that the table does not have, or beyond
    LARGEST_FACTOR times it, and for two overrides of one entry.
    """

    def __init__(self, overrides: Sequence[Override] = ()) -> None:
        self._overrides: dict[tuple[str, DType], float] = {}
        for override in overrides:
            if override.op not in OPERATIONS:
                raise ValueError(f"There is no tolerance of {override.op!r}; there is one of {', '.join(OPERATIONS)}.")
            if (override.op, override.dtype) in self._overrides:
                raise ValueError(f"The tolerance of {override.op} in {override.dtype.value} is overridden twice.")
            largest = LARGEST_FACTOR * _table_entry(override.op, override.dtype)
            if not 0.0 < override.nmse <= largest:
                raise ValueError(
                    f"The tolerance of {override.op} in {override.dtype.value} is overridden with {override.nmse:g}; "
                    f"possible is more than 0 and at most {largest:g}, {LARGEST_FACTOR:g} times the table's figure."
                )
            self._overrides[override.op, override.dtype] = override.nmse

    def of(self, op: str, dtype: DType) -> float:
        """The largest error of `op` with results in `dtype`. Raises KeyError for a dtype the table does not have."""
        return self._overrides.get((op, dtype), _table_entry(op, dtype))


def _table_entry(op: str, dtype: DType) -> float:
    rows = _table()
    row = rows.get(op, rows["default"])
    if dtype.value not in row:
        raise ValueError(f"There is no tolerance of {op} in {dtype.value}; there is one in {', '.join(row)}.")
    return row[dtype.value]


@cache
def _table() -> Mapping[str, Mapping[str, float]]:
    text = files("octavo_conformance").joinpath("tolerances.toml").read_text()
    return tomllib.loads(text)
