"""Level `ops`: each operation against a float64 oracle."""

from __future__ import annotations

from collections.abc import Iterator

from octavo_conformance.case import Case
from octavo_conformance.cases.ops import (
    attention,
    elementwise,
    experts,
    kv_copies,
    kv_far,
    kv_writes,
    linear,
    probabilities,
    rows,
)


def cases() -> Iterator[Case]:
    """From operations on rows to those on the paged cache."""
    for module in (rows, probabilities, elementwise, linear, experts, attention, kv_writes, kv_copies, kv_far):
        yield from module.cases()
