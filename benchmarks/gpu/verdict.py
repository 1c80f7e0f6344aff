"""Whether a check succeeded: everything came to its end and nothing failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.plan import PARTS

NO_TIME = "No time was left for it."
"""Why a part was not begun."""

_FILLING = {part.name for part in PARTS if part.fills}


def succeeded(document: Mapping[str, Any]) -> bool:
    """Judged by the record. Goals that were not met are results, and no failures."""
    parts = all(_ended(name, part["reason"]) for name, part in document["parts"].items())
    return parts and all(_measured(one) for one in document["measurements"])


def _ended(part: str, reason: str) -> bool:
    return not reason or (reason == NO_TIME and part in _FILLING)


def _measured(one: Mapping[str, Any]) -> bool:
    if one["status"] == "skipped":
        return one["part"] in _FILLING
    if one["status"] not in ("ok", "absent"):
        return False
    return not one["name"].startswith("conformance/") or _conforms(one)


def _conforms(one: Mapping[str, Any]) -> bool:
    """Every case has run, as far as the part was to run them all, on a device, and none has failed."""
    figures = one["figures"]
    complete = figures["complete"] or one["part"] in _FILLING
    return bool(complete and not figures["failed"] and not figures["unavailable"])
