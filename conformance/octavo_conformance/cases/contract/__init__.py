"""Level contract: what a plugin is, and what its device is before any operation is judged."""

from __future__ import annotations

from collections.abc import Iterator

from octavo_conformance.case import Case
from octavo_conformance.cases.contract import arrays, claims, memory, plugin, shards, steps


def cases() -> Iterator[Case]:
    """From the package to the device that it opens, and from the device to the steps that run on it."""
    for module in (plugin, claims, arrays, memory, steps, shards):
        yield from module.cases()
