"""The parts of a check in the order in which they run, and the time each may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One part: measurements that share a process.

    module: which has `measurements(scale, argument)`. seconds: the most that the part may take. argument: tells two
    parts of one module apart. fills: it takes the time that is left, and is cut short when that is over.
    """

    name: str
    module: str
    seconds: float
    argument: str = ""
    fills: bool = False


_PARTS = "benchmarks.gpu.parts"

PARTS = (
    Part("facts", f"{_PARTS}.facts", 30),
    Part("conformance-quick", f"{_PARTS}.conformance", 120, "quick"),
    Part("operations", f"{_PARTS}.operations", 120),
    Part("serving", f"{_PARTS}.serving", 130),
    Part("transformers", f"{_PARTS}.transformers_peer", 90),
    Part("startup", f"{_PARTS}.startup", 60),
    Part("attention-peers", f"{_PARTS}.attention_peers", 75),
    Part("conformance-whole", f"{_PARTS}.conformance", 3600, "whole", fills=True),
)

MINUTES = 8.7
"""What the whole check takes at the most, unless it is given another time."""
