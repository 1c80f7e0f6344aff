"""Random histories of the scheduler, with a model whose next token depends on everything before it.

The model keeps a KV store: for every slot, which token was written there after which prefix. It applies a
plan as a device does (copies, then writes, then reads through the block tables) and samples from what it
read. So a sequence that was preempted, chunked, forked or served from the prefix cache gives the tokens it
would have given alone, or something is wrong.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from octavo.cache import BlockManager, PrefixIndex
from octavo.errors import QueueFullError
from octavo.scheduling import (
    Chunk,
    FinishReason,
    Plan,
    Request,
    RequestTooLargeError,
    Scheduler,
    SchedulerConfig,
    Sequence,
)

VOCABULARY = 3
STOP = 3
PREFIXES: tuple[list[int], ...] = ([], [0] * 6, [0, 1, 0, 1, 2, 2, 1, 0, 0], [2] * 12)


def _extend(chain: object, token: int) -> object:
    return hash((chain, token))


def _sample(chain: object, seed: int | None) -> int:
    number = hash((chain, seed, "draw"))
    return STOP if number % 29 == 0 else number % VOCABULARY


def alone(request: Request, sequence: Sequence) -> list[int]:
    """What a sequence's output is when nobody else is there."""
    chain: object = (request.cache_salt, request.adapter)
    for token in request.prompt_token_ids:
        chain = _extend(chain, token)
    output: list[int] = []
    while len(output) < request.max_tokens and STOP not in output:
        output.append(_sample(chain, sequence.seed))
        chain = _extend(chain, output[-1])
    return output


@dataclass
class Row:
    """A chunk as it went to the device: everything is a copy.

    token_ids: of positions 0 to the chunk's last; -1 for the last one where it is on the board only.
    """

    chunk: Chunk
    token_ids: list[int]
    slots: list[int]
    lane: int
    receivers: list[tuple[int, int | None]]  # lane and seed


@dataclass
class Launched:
    plan: Plan
    rows: list[Row]


class FakeModel:
    """A device with a KV cache of one number a slot: the hash of all tokens up to the one written there.

    It runs steps when told to, which may be long after they were launched.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.store: dict[int, tuple[int, object]] = {}  # slot -> position, chain
        self.board: dict[int, int] = {}  # lane -> the last token sampled for it

    def launch(self, plan: Plan) -> Launched:
        rows = []
        for chunk in plan.chunks:
            sequence, end = chunk.sequence, chunk.start + chunk.count
            token_ids = sequence.token_ids[:end]
            assert len(token_ids) >= end - (chunk.count == 1), f"{sequence!r} computes tokens that nobody knows"
            rows.append(
                Row(
                    chunk,
                    token_ids + [-1] * (end - len(token_ids)),
                    [sequence.block_table.slot(position) for position in range(end)],
                    sequence.lane,
                    [(each.lane, each.seed) for each in chunk.receivers] if chunk.samples else [],
                )
            )
        return Launched(plan, rows)

    def run(self, launched: Launched) -> list[list[int]]:
        """The sampled tokens of each chunk."""
        self._copy(launched.plan)
        for row in launched.rows:
            if row.token_ids[-1] == -1:
                row.token_ids[-1] = self.board[row.lane]
            self._write(row)
        return [self._read_and_sample(row) for row in launched.rows]

    def spoil(self, launched: Launched) -> None:
        """Fail: whatever was to be written is something else."""
        for _, target in launched.plan.copies:
            for offset in range(self.block_size):
                self.store[target * self.block_size + offset] = (-1, "spoiled")
        for row in launched.rows:
            for slot in row.slots[row.chunk.start :]:
                self.store[slot] = (-1, "spoiled")
        self.board.clear()

    def _copy(self, plan: Plan) -> None:
        # One after the other, from the last to the first: a plan's copies must not depend on their order.
        for source, target in reversed(plan.copies):
            for offset in range(self.block_size):
                self.store[target * self.block_size + offset] = self.store.get(
                    source * self.block_size + offset, (-1, None)
                )

    def _write(self, row: Row) -> None:
        start, chain = row.chunk.start, _salt(row)
        if start:
            _, chain = self.store[row.slots[start - 1]]
        for position in range(start, len(row.slots)):
            chain = _extend(chain, row.token_ids[position])
            self.store[row.slots[position]] = position, chain

    def _read_and_sample(self, row: Row) -> list[int]:
        """Attention reads every computed slot, so every one of them must hold this sequence's own prefix."""
        chain = _salt(row)
        for position, (token, slot) in enumerate(zip(row.token_ids, row.slots, strict=True)):
            chain = _extend(chain, token)
            assert self.store[slot] == (position, chain), f"{row.chunk.sequence!r} reads what is not its own"
        sampled = [_sample(chain, seed) for _, seed in row.receivers]
        self.board.update({lane: token for (lane, _), token in zip(row.receivers, sampled, strict=True)})
        return sampled


def _salt(row: Row) -> object:
    request = row.chunk.sequence.request
    return (request.cache_salt, request.adapter)


class Harness:
    """A scheduler, its model, and everything that was asked of them.

    ahead: a plan is made and launched before the one before it has run.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        seqs: int,
        tokens: int,
        caching: bool,
        ahead: bool,
        index: PrefixIndex | None = None,
    ) -> None:
        self.blocks = BlockManager(num_blocks, block_size, caching, index)
        self.engine = Scheduler(SchedulerConfig(seqs, max(tokens, seqs), 60, 12), self.blocks)
        self.model = FakeModel(block_size)
        self.ahead = ahead
        self.in_flight: Launched | None = None
        self.requests: list[Request] = []
        self.num_copies = self.num_wasted = 0

    def add(self, prompt: list[int], max_tokens: int, n: int, **options: Any) -> None:
        name = str(len(self.requests))
        request = Request(name, tuple(prompt), max_tokens, n=n, seeds=tuple(range(n)), **options)
        try:
            self.engine.add(request)
        except (QueueFullError, RequestTooLargeError):
            return
        self.requests.append(request)

    def step(self, abort: str = "") -> None:
        """abort: a request to end while its step runs."""
        plan = self.engine.schedule()
        assert plan.chunks or self.in_flight or not self.engine.has_work, "There is work, and nobody makes progress."
        plan.check_integrity(self.blocks)
        self.num_copies += len(plan.copies)
        launched = self.model.launch(plan)
        if self.in_flight:
            self._land(self.in_flight, abort)
        self.engine.launched(plan)
        self.in_flight = launched if plan.chunks else None
        if self.in_flight and not self.ahead:
            self._land(self.in_flight, abort)
            self.in_flight = None

    def _land(self, launched: Launched, abort: str) -> None:
        sampled = self.model.run(launched)
        self.engine.abort(abort)
        for chunk, tokens in zip(launched.plan.chunks, sampled, strict=True):
            self.num_wasted += chunk.is_wasted
            for sequence in self.engine.advance(chunk, tokens):
                if STOP in sequence.token_ids[-1:]:
                    self.engine.finish(sequence, FinishReason.STOP)
                elif sequence.num_output_tokens == sequence.request.max_tokens:
                    self.engine.finish(sequence, FinishReason.LENGTH)

    def fail(self) -> None:
        """The step in flight fails, and everything is computed again."""
        if self.in_flight:
            self.model.spoil(self.in_flight)
            self.in_flight = None
        self.engine.restart()

    def sequences(self) -> list[Sequence]:
        return [sequence for request in self.requests for sequence in request.sequences]

    def check(self) -> None:
        self.engine.check_integrity()

    def drain(self) -> None:
        """Run to the end: it comes, everyone has the tokens they would have had alone, and nothing leaks."""
        steps, enough = 0, 100 + 20 * sum(len(s.token_ids) + s.request.max_tokens for s in self.sequences())
        while self.engine.has_work:
            self.step()
            self.check()
            steps += 1
            assert steps < enough, "Some request never finishes."
        self.step()  # takes what is still in flight
        self.check()
        for sequence in self.sequences():
            assert sequence.finish_reason is not None
            expected = alone(sequence.request, sequence)
            assert list(sequence.output_token_ids) == expected[: sequence.num_output_tokens]
            if sequence.finish_reason is FinishReason.LENGTH:
                assert sequence.num_output_tokens == len(expected)
            assert sequence.num_pending == 0 or sequence.is_finished
        stats = self.blocks.stats()
        assert stats.used_blocks == stats.used_slots == 0
        assert stats.cached_blocks + stats.free_blocks == stats.total_blocks


class SchedulerHistories(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(3, 18),
        block_size=st.integers(1, 5),
        seqs=st.integers(1, 6),
        tokens=st.integers(1, 14),
        caching=st.sampled_from([True, True, False]),
        ahead=st.booleans(),
    )
    def make(self, **options: Any) -> None:
        self.harness = Harness(**options)

    @rule(
        prefix=st.sampled_from(PREFIXES),
        tail=st.lists(st.integers(0, 1), min_size=1, max_size=4),
        max_tokens=st.integers(1, 10),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.integers(-1, 1),
        arrival_time=st.sampled_from([0.0, 1.0]),
        cache_salt=st.sampled_from(["", "", "", "x"]),
        read_prefix_cache=st.sampled_from([True, True, True, False]),
    )
    def add(self, prefix: list[int], tail: list[int], max_tokens: int, n: int, **options: Any) -> None:
        self.harness.add(prefix + tail, max_tokens, n, **options)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.harness.step()
            self.harness.check()

    @rule(number=st.integers(0, 40))
    def abort(self, number: int) -> None:
        alive = any(not s.is_finished for s in self.harness.sequences() if s.request.request_id == str(number))
        assert self.harness.engine.abort(str(number)) == alive

    @rule(number=st.integers(0, 40))
    def abort_between_plan_and_results(self, number: int) -> None:
        self.harness.step(abort=str(number))

    @rule()
    def fail(self) -> None:
        self.harness.fail()

    @rule(number=st.integers(0, 40))
    def stop_one_sequence(self, number: int) -> None:
        sequences = self.harness.sequences()
        if sequences:
            self.harness.engine.finish(sequences[number % len(sequences)], FinishReason.STOP)

    @rule()
    def reset_prefix_cache(self) -> None:
        self.harness.blocks.reset_prefix_cache()

    @invariant()
    def everything_is_accounted_for(self) -> None:
        if hasattr(self, "harness"):
            self.harness.check()

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.drain()


SchedulerHistories.TestCase.settings = settings(max_examples=1000, stateful_step_count=20, deadline=None)
TestSchedulerHistories = SchedulerHistories.TestCase


def _random_history(number: int, index: PrefixIndex | None = None) -> Harness:
    dice = random.Random(number)
    harness = Harness(
        dice.randint(4, 20),
        dice.randint(1, 5),
        dice.randint(1, 8),
        dice.randint(1, 16),
        dice.random() < 0.8,
        ahead=number % 2 == 1,
        index=index,
    )
    for _ in range(dice.randint(2, 10)):
        prompt = dice.choice(PREFIXES) + [dice.randrange(2) for _ in range(dice.randint(1, 4))]
        salt, reads = dice.choice(["", "", "x"]), dice.random() < 0.9
        harness.add(
            prompt,
            dice.randint(1, 12),
            dice.choice([1, 1, 2, 4]),
            priority=dice.randint(0, 1),
            cache_salt=salt,
            read_prefix_cache=reads,
        )
        for _ in range(dice.randint(0, 3)):
            harness.step()
        if dice.random() < 0.05:
            harness.fail()
    harness.drain()
    return harness


@pytest.mark.parametrize("part", range(4))
def test_every_request_gives_the_tokens_it_gives_alone(part: int) -> None:
    preemptions = copies = hits = wasted = 0
    for number in range(250 * part, 250 * (part + 1)):
        harness = _random_history(number)
        preemptions += sum(sequence.num_preemptions for sequence in harness.sequences())
        copies += harness.num_copies
        hits += harness.blocks.stats().prefix_hits
        wasted += harness.num_wasted
    assert min(preemptions, copies, hits, wasted) > 50, "The histories did not try what they are there for."


def test_tokens_are_right_even_when_every_digest_collides() -> None:
    for number in range(100):
        _random_history(number, PrefixIndex(lambda parent, tokens: b"all collide"))
