"""What a case ended in. The taxonomy is that of IREE's conformance test suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType


class Verdict(str, Enum):
    """How a case ended. All but UNAVAILABLE stay in the denominator of the score."""

    PASSED = "passed"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"  # the device does not claim what the case needs: permanent
    EXPECTED_FAILURE = "expected failure"  # it failed, as its vendor said it would: temporary, and strict
    UNAVAILABLE = "unavailable"  # there is no device here


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one case.

    reason: why it is not `passed`, in sentences; "" where it is.
    nmse, tolerance: the error figure that came closest to its tolerance, and that tolerance; None where the case
        compares nothing.
    figures: what else was measured (performance: bytes and operations per second).
    """

    case: str
    verdict: Verdict
    reason: str = ""
    nmse: float | None = None
    tolerance: float | None = None
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
