"""What the invariant checks raise."""

from __future__ import annotations


class IntegrityError(RuntimeError):
    """An invariant of the cache or the scheduler does not hold; always a fault of ours. Names the fact."""


def require(fact: bool, message: str) -> None:
    """Raise `IntegrityError(message)` unless `fact` holds."""
    if not fact:
        raise IntegrityError(message)
