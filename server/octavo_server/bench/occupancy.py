"""How full the KV cache is: what paging wastes, and what reserving contiguous memory for each request would.

Waste is the part of the allocated slots that holds no token, as in figure 2 of "Efficient Memory Management
for Large Language Model Serving with PagedAttention" (Kwon et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from octavo_server.bench.workload import WorkloadRequest

PAGED_ATTENTION_WASTE = 0.04
"""The bound that PagedAttention's authors report."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The cache after one step. Slots hold one token each; shared blocks count once.

    running: sequences in the batch. unshared_slots: what the same sequences would allocate if none shared a
    block, None where that was not looked at.
    """

    running: int
    allocated_slots: int
    used_slots: int
    unshared_slots: int | None = None

    @property
    def waste(self) -> float:
        return waste(self.allocated_slots, self.used_slots)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Waste over the steps of a run, 0 to 1.

    mean, largest: over steps. overall: of the slots of all steps together, so that full steps weigh more.
    """

    steps: int
    mean: float
    largest: float
    overall: float
    peak_slots: int

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Occupancy:
        """Of the samples with anything allocated. Raises ValueError where there is none."""
        held = [sample for sample in samples if sample.allocated_slots]
        if not held:
            raise ValueError("No sample has anything allocated.")
        wastes = [sample.waste for sample in held]
        allocated = sum(sample.allocated_slots for sample in held)
        return cls(
            len(held),
            sum(wastes) / len(wastes),
            max(wastes),
            waste(allocated, sum(sample.used_slots for sample in held)),
            max(sample.allocated_slots for sample in held),
        )


class Reservation(Enum):
    """How an allocator without paging reserves memory for a request, with the paper's names for them."""

    LONGEST = "max_model_len (Orca Max)"
    POWER_OF_TWO = "output to the next power of two (Orca Pow2)"
    TRUE_LENGTH = "true final length (Orca Oracle)"

    def slots(self, request: WorkloadRequest, max_model_len: int) -> int:
        prompt, output = len(request.prompt_token_ids), request.output_tokens
        if self is Reservation.LONGEST:
            return max_model_len
        if self is Reservation.POWER_OF_TWO:
            return min(max_model_len, prompt + (1 << (output - 1).bit_length()))
        return request.stored_tokens


def waste(allocated: int, used: int) -> float:
    return 1 - used / allocated if allocated else 0.0


def paged_slots(tokens: int, block_size: int) -> int:
    """Slots of the blocks that hold `tokens` tokens of one sequence."""
    return -(-tokens // block_size) * block_size


def reserved(
    samples: Sequence[tuple[Sample, Sequence[WorkloadRequest]]], policy: Reservation, max_model_len: int
) -> list[Sample]:
    """The same steps under a contiguous allocator with memory for all of them.

    samples: what was sampled, and who was running then.
    """
    return [
        Sample(len(running), sum(policy.slots(request, max_model_len) for request in running), sample.used_slots)
        for sample, running in samples
    ]


def by_running(samples: Sequence[Sample]) -> dict[int, float]:
    """Mean waste for each number of running requests, ascending."""
    groups: dict[int, list[float]] = {}
    for sample in samples:
        if sample.allocated_slots:
            groups.setdefault(sample.running, []).append(sample.waste)
    return {running: sum(wastes) / len(wastes) for running, wastes in sorted(groups.items())}


def sharing_saves(samples: Sequence[Sample]) -> float:
    """Part of the unshared slots that sharing saves, over all samples that know both."""
    known = [(sample.allocated_slots, sample.unshared_slots) for sample in samples if sample.unshared_slots]
    return waste(sum(unshared or 0 for _, unshared in known), sum(shared for shared, _ in known))
