"""Packed plans against the plain rule: token by token, from the sequences and their block tables."""

from __future__ import annotations

import random

import numpy as np
import pytest

from octavo.backend.tree import tree_map
from octavo.cache import BlockManager
from octavo.packing import PackedPlan, Packer, padded_size
from octavo.scheduling import FinishReason, Plan, Request, Scheduler, SchedulerConfig

LANES, LENGTH = 6, 60


def _check(packed: PackedPlan, plan: Plan, block_size: int, pad: bool, asynchronous: bool) -> None:
    meta, token, end = packed.attention, 0, plan.num_tokens
    for index, chunk in enumerate(plan.chunks):
        sequence, stop = chunk.sequence, chunk.start + chunk.count
        blocks = sequence.block_table.blocks
        assert meta.context_lengths[index] == stop
        width = -(-stop // block_size)
        assert meta.block_tables[index].tolist() == blocks[:width] + [0] * (meta.block_tables.shape[1] - width)
        assert meta.query_starts[index] == token
        for position in range(chunk.start, stop):
            known = position < len(sequence.token_ids)
            assert packed.token_ids[token] == (sequence.token_ids[position] if known else 0)
            if asynchronous:
                assert packed.lane_of_token is not None
                assert packed.lane_of_token[token] == (-1 if known else sequence.lane)
            assert meta.positions[token] == position
            assert meta.slots[token] == sequence.block_table.slot(position)
            assert meta.sequences[token] == index
            token += 1
    assert token == end
    assert meta.decode_only == all(chunk.count == 1 for chunk in plan.chunks)
    rows = len(plan.chunks)
    assert meta.query_starts[rows:].tolist() == [end] * (len(meta.query_starts) - rows)
    for array in (meta.context_lengths[rows:], meta.block_tables[rows:], meta.positions[end:], meta.slots[end:]):
        assert not array.any()
    assert (packed.lane_of_token is None) == (not asynchronous)
    width = -(-int(meta.context_lengths.max()) // block_size)
    assert meta.block_tables.shape == (padded_size(rows, pad), padded_size(width, pad))
    assert len(packed.token_ids) == padded_size(end, pad)
    arrays = [packed.token_ids, meta.positions, meta.slots, meta.sequences, meta.query_starts, meta.context_lengths]
    assert all(array.dtype == np.int32 for array in [*arrays, meta.block_tables])


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_packed_plans_follow_the_rule_whatever_came_before(pad: bool, asynchronous: bool) -> None:
    preemptions = copies = 0
    for number in range(60):
        dice = random.Random(number)
        block_size = dice.choice([1, 2, 4])
        blocks = BlockManager(dice.randint(60, 90) // block_size, block_size)
        scheduler = Scheduler(SchedulerConfig(LANES, dice.randint(LANES, 16), LENGTH, 50), blocks)
        packer = Packer(LANES, block_size, LENGTH, asynchronous)
        for name in range(12):
            prompt = [0] * dice.choice([0, 4, 9]) + [dice.randrange(3) for _ in range(dice.randint(1, 12))]
            scheduler.add(Request(str(name), prompt, dice.randint(1, 20), n=dice.choice([1, 1, 2, 4])))
        before: Plan | None = None
        kept: list[tuple[PackedPlan, PackedPlan]] = []
        while scheduler.has_work:
            plan = scheduler.schedule()
            preemptions, copies = preemptions + len(plan.preempted), copies + len(plan.copies)
            if plan.chunks:
                packed = packer.pack(plan, pad)
                _check(packed, plan, block_size, pad, asynchronous)
                kept.append((packed, _copied(packed)))
            if not asynchronous:
                scheduler.launched(plan)
            for chunk in (before.chunks if before else ()) if asynchronous else plan.chunks:
                for sequence in scheduler.advance(chunk, [dice.randrange(3) for _ in range(chunk.samples)]):
                    if sequence.num_tokens == sequence.max_length or dice.random() < 0.02:
                        scheduler.finish(sequence, FinishReason.STOP)
            if asynchronous:
                scheduler.launched(plan)
                before = plan
        for packed, copy in kept:  # a device may have kept a view
            assert packed.token_ids.tolist() == copy.token_ids.tolist()
            assert packed.attention.slots.tolist() == copy.attention.slots.tolist()
            assert packed.attention.block_tables.tolist() == copy.attention.block_tables.tolist()
    assert min(preemptions, copies) > 20


def _copied(packed: PackedPlan) -> PackedPlan:
    return tree_map(np.array, packed)
