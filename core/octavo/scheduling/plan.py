"""What one step computes, in plain integers."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.cache import BlockManager, Copies
from octavo.cache.integrity import require
from octavo.scheduling.request import Sequence, Status


@dataclass(slots=True, eq=False)  # never changed; freezing it would make the making of it four times as slow
class Chunk:
    """Tokens `start .. start + count - 1` of a sequence, and how many to sample after the last.

    samples: 0 while tokens of the sequence are left for later steps, else 1, or `n` where siblings take their
    first tokens here.
    """

    sequence: Sequence
    start: int
    count: int
    samples: int

    @property
    def receivers(self) -> tuple[Sequence, ...]:
        """Who takes the sampled tokens, in order: the sequence, and its siblings where they start here."""
        return self.sequence.request.sequences if self.samples > 1 else (self.sequence,)

    @property
    def is_wasted(self) -> bool:
        """Whether everybody whom it was computed for has finished since it was planned."""
        if self.samples > 1:
            return self.sequence.request.is_finished
        return self.sequence.is_finished


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One step.

    The first `num_decodes` chunks have one token each, the others are prefill chunks of two or
    more.

    copies: pairs (source block, target block) to run before the step writes; no block is in two pairs'
    targets or is both source and target, so they may run in any order. preempted: sequences that lost their
    blocks to this plan. num_tokens: sum of counts.
    """

    chunks: tuple[Chunk, ...]
    copies: Copies
    preempted: tuple[Sequence, ...]
    num_tokens: int
    num_decodes: int

    def one_by_one(self) -> tuple[Plan, ...]:
        """The same work as plans of one chunk each, to be run in this order once the copies are made.

        Also right after an attempt to run the whole: every write goes to the same slot with the same value again.
        """
        return tuple(Plan((chunk,), (), (), chunk.count, int(chunk.count == 1)) for chunk in self.chunks)

    def check_integrity(self, blocks: BlockManager) -> None:
        """Raise `IntegrityError` unless the plan can run. For use before it is launched."""
        counts = [chunk.count for chunk in self.chunks]
        require(sum(counts) == self.num_tokens, f"The plan says {self.num_tokens} tokens and has {sum(counts)}.")
        require(
            all(count == 1 for count in counts[: self.num_decodes]),
            "A decode of the plan has more than one token.",
        )
        require(
            all(count > 1 for count in counts[self.num_decodes :]),
            "A plan's chunks of one token must come first.",
        )
        sequences = {chunk.sequence for chunk in self.chunks}
        require(len(sequences) == len(self.chunks), "A sequence is in the plan twice.")
        require(sequences.isdisjoint(self.preempted), "A sequence is in the plan and was preempted by it.")
        for chunk in self.chunks:
            _check_chunk(chunk, blocks)
        targets = {target for _, target in self.copies}
        require(len(targets) == len(self.copies), f"A block is the target of two copies: {self.copies}.")
        require(
            targets.isdisjoint(source for source, _ in self.copies),
            f"A block is source and target of copies: {self.copies}.",
        )


def _check_chunk(chunk: Chunk, blocks: BlockManager) -> None:
    sequence, end = chunk.sequence, chunk.start + chunk.count
    require(sequence.status is Status.RUNNING, f"{sequence!r} is in the plan and not running.")
    require(chunk.start == sequence.num_computed_tokens, f"{sequence!r} would compute from {chunk.start} on.")
    samples = sequence.num_samples if end == sequence.num_tokens else 0
    require(end <= sequence.num_tokens, f"{sequence!r} would compute {end} tokens.")
    require(chunk.samples == samples, f"{sequence!r} would sample {chunk.samples} tokens, not {samples}.")
    require(
        blocks.is_writable(sequence.block_table, end),
        f"{sequence!r} would write positions {chunk.start} to {end - 1} where it has no block of its own.",
    )
