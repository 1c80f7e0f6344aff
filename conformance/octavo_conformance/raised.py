"""What an exception says, as a part of a verdict."""

from __future__ import annotations

import traceback

LONGEST_REASON = 4000
"""Characters of a verdict's reason."""


def said(error: BaseException) -> str:
    """The message of an exception, whatever it is made of."""
    try:
        return str(error).encode("utf-8", "backslashreplace").decode()
    except Exception as unspeakable:
        return f"(its message raised {type(unspeakable).__name__})"


def raised(error: BaseException) -> str:
    """What was raised, and the last place it came through: "raised TypeError: ... in top_k (ops.py:7)"."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name} ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"raised {type(error).__name__}: {shortened(said(error), LONGEST_REASON // 2)}{place}"


def shortened(reason: str, longest: int = LONGEST_REASON) -> str:
    """A reason that fits a report: what a backend says has no bound of its own."""
    if len(reason) <= longest:
        return reason
    return f"{reason[:longest]} ... ({len(reason) - longest:,} more characters)"
