"""Level invariance: the same draws and the same tokens whatever happens around a request, and on every backend."""

from __future__ import annotations

from collections.abc import Iterator

from octavo_conformance.case import Case
from octavo_conformance.cases.invariance import draws, noise, tokens


def cases() -> Iterator[Case]:
    """From the noise to the draw, and from the draw to the tokens of whole requests."""
    for module in (noise, draws, tokens):
        yield from module.cases()
