"""A plan in the making."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.scheduling.plan import Chunk, Plan
from octavo.scheduling.request import Sequence


@dataclass(slots=True)
class Draft:
    """What a plan has so far.

    budget: tokens left for prefills. promised: blocks that running prefills still need after this step.
    """

    budget: int
    promised: int = 0
    decodes: list[Chunk] = field(default_factory=list)
    prefills: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    def plan(self) -> Plan:
        num_tokens = len(self.decodes) + sum(chunk.count for chunk in self.prefills)
        chunks = (*self.decodes, *self.prefills)
        return Plan(chunks, tuple(self.copies), tuple(self.preempted), num_tokens, len(self.decodes))
