from __future__ import annotations

import itertools
from typing import Any

import pytest

from octavo.cache import BlockManager, IntegrityError
from octavo.errors import ConfigError, InvalidRequestError, QueueFullError
from octavo.scheduling import (
    FinishReason,
    Plan,
    Request,
    RequestTooLargeError,
    Scheduler,
    SchedulerConfig,
    Sequence,
    Status,
)

_fresh = itertools.count(1000)


def scheduler(
    num_blocks: int = 64,
    block_size: int = 4,
    *,
    seqs: int = 8,
    tokens: int = 32,
    length: int = 100,
    waiting: int = 8,
) -> Scheduler:
    config = SchedulerConfig(seqs, tokens, length, waiting)
    ticks = itertools.count()
    return Scheduler(config, BlockManager(num_blocks, block_size), clock=lambda: float(next(ticks)))


def request(name: str, prompt: int = 6, max_tokens: int = 4, **options: Any) -> Request:
    """A request whose prompt shares nothing with any other."""
    return Request(name, tuple(next(_fresh) for _ in range(prompt)), max_tokens, **options)


def step(engine: Scheduler, *, check: bool = True) -> Plan:
    """Schedule, check, compute, and finish what has all its tokens."""
    plan = engine.schedule()
    plan.check_integrity(engine.blocks)
    engine.launched(plan)
    for chunk in plan.chunks:
        for sequence in engine.advance(chunk, list(range(chunk.samples))):
            if sequence.num_output_tokens == sequence.request.max_tokens:
                engine.finish(sequence, FinishReason.LENGTH)
    if check:
        engine.check_integrity()
    return plan


def shape(plan: Plan) -> list[tuple[str, int, int, int]]:
    return [(chunk.sequence.request.request_id, chunk.start, chunk.count, chunk.samples) for chunk in plan.chunks]


def test_a_prompt_is_computed_and_then_decoded() -> None:
    engine = scheduler()
    r = request("a", prompt=6, max_tokens=3)
    engine.add(r)
    assert engine.has_work
    assert [shape(step(engine)) for _ in range(3)] == [[("a", 0, 6, 1)], [("a", 6, 1, 1)], [("a", 7, 1, 1)]]
    assert r.is_finished
    assert r.sequences[0].finish_reason is FinishReason.LENGTH
    assert not engine.has_work
    assert step(engine).chunks == ()
    assert engine.blocks.stats().used_blocks == 0


def test_a_long_prompt_is_computed_in_chunks_and_samples_with_the_last() -> None:
    engine = scheduler(tokens=8)
    engine.add(request("a", prompt=20))
    assert [shape(step(engine)) for _ in range(3)] == [[("a", 0, 8, 0)], [("a", 8, 8, 0)], [("a", 16, 4, 1)]]


def test_decodes_come_first_and_prefills_take_the_rest_of_the_budget() -> None:
    engine = scheduler(tokens=8)
    engine.add(request("a", prompt=4, max_tokens=9))
    step(engine)
    engine.add(request("b", prompt=10, max_tokens=9))
    engine.add(request("c", prompt=10, max_tokens=9))
    assert shape(step(engine)) == [("a", 4, 1, 1), ("b", 0, 7, 0)]
    plan = step(engine)
    assert shape(plan) == [("a", 5, 1, 1), ("b", 7, 3, 1), ("c", 0, 4, 0)]  # b goes on before c is admitted
    assert (plan.num_tokens, plan.num_decodes) == (8, 1)
    assert shape(step(engine)) == [("a", 6, 1, 1), ("b", 10, 1, 1), ("c", 4, 6, 1)]


def test_a_better_ranked_prefill_still_comes_after_the_decodes() -> None:
    engine = scheduler(tokens=8)
    engine.add(request("late", prompt=4, max_tokens=9, priority=1))
    step(engine)
    engine.add(request("urgent", prompt=6, priority=0))
    assert shape(step(engine)) == [("late", 4, 1, 1), ("urgent", 0, 6, 1)]


def test_waiting_requests_run_by_priority_and_then_by_arrival() -> None:
    engine = scheduler(seqs=1)
    for name, priority, arrival in [
        ("late", 0, 9.0),
        ("early", 0, 1.0),
        ("low", 5, 0.0),
        ("urgent", -1, 99.0),
    ]:
        engine.add(request(name, max_tokens=1, priority=priority, arrival_time=arrival))
    assert [shape(step(engine))[0][0] for _ in range(4)] == ["urgent", "early", "late", "low"]


def test_requests_of_one_arrival_time_run_in_the_order_they_were_added() -> None:
    engine = scheduler(seqs=1, waiting=20)
    names = [str(number) for number in range(12)]
    for name in names:
        engine.add(request(name, max_tokens=1))
    assert [shape(step(engine))[0][0] for _ in names] == names


def test_siblings_fork_from_the_computed_prompt() -> None:
    engine = scheduler()
    r = request("a", prompt=6, max_tokens=3, n=3)
    engine.add(r)
    plan = engine.schedule()
    assert shape(plan) == [("a", 0, 6, 3)]
    assert plan.chunks[0].receivers == r.sequences
    engine.launched(plan)
    assert engine.advance(plan.chunks[0], [50, 51, 52]) == list(r.sequences)
    assert [s.token_ids[6:] for s in r.sequences] == [[50], [51], [52]]
    assert all(s.num_computed_tokens == 6 and s.status is Status.RUNNING for s in r.sequences)
    assert engine.blocks.stats().used_blocks == 2
    plan = step(engine)
    assert [(c.sequence.index, c.start, c.samples) for c in plan.chunks] == [(0, 6, 1), (1, 6, 1), (2, 6, 1)]
    assert len(plan.copies) == 2  # the last one keeps the block it shared
    step(engine)
    assert r.is_finished


def test_admission_counts_every_sibling() -> None:
    engine = scheduler(seqs=4)
    engine.add(request("a", n=3, max_tokens=2))
    engine.add(request("b", n=2, max_tokens=2))
    engine.add(request("c", n=1, max_tokens=2))
    assert [chunk[0] for chunk in shape(step(engine))] == ["a"]  # c waits behind b: strictly in order
    assert engine.num_running == 3
    assert engine.num_waiting == 2
    step(engine)
    assert [chunk[0] for chunk in shape(step(engine))] == ["b", "c"]


def test_the_worst_ranked_is_preempted_and_comes_back_with_its_tokens() -> None:
    engine = scheduler(num_blocks=7, block_size=4)
    first, second = request("a", prompt=8, max_tokens=12), request("b", prompt=8, max_tokens=12)
    engine.add(first)
    engine.add(second)
    preempted: list[tuple[Sequence, ...]] = []
    while not first.is_finished:
        preempted.append(step(engine).preempted)
    assert [p for p in preempted if p] == [(second.sequences[0],)]
    assert second.sequences[0].num_preemptions == 1
    kept = list(second.sequences[0].output_token_ids)
    assert kept
    while not second.is_finished:
        step(engine)
    assert list(second.sequences[0].output_token_ids[: len(kept)]) == kept
    assert second.sequences[0].num_output_tokens == 12


def test_a_preempted_sequence_recomputes_from_the_prefix_cache() -> None:
    engine = scheduler(num_blocks=9, block_size=4)
    first, second = request("a", prompt=8, max_tokens=16), request("b", prompt=8, max_tokens=16)
    engine.add(first)
    engine.add(second)
    while not second.sequences[0].num_preemptions:
        step(engine)
    engine.abort("a")
    assert shape(step(engine)) == [("b", 12, 5, 1)]  # a took the last of its four blocks
    assert second.sequences[0].num_cached_tokens == 0  # of its first admission


def test_a_sequence_preempts_itself_when_it_is_the_worst() -> None:
    engine = scheduler(num_blocks=4, block_size=4)
    engine.add(request("a", prompt=4, max_tokens=8))
    engine.add(request("b", prompt=4, max_tokens=8))
    step(engine)
    plan = step(engine)  # both need a second block, and one is left
    assert shape(plan) == [("a", 4, 1, 1)]
    assert [s.request.request_id for s in plan.preempted] == ["b"]


def test_a_waiting_request_preempts_nobody() -> None:
    engine = scheduler(num_blocks=5, block_size=4)
    engine.add(request("a", prompt=8, max_tokens=4, priority=5))
    step(engine)
    engine.add(request("urgent", prompt=12, max_tokens=1, priority=-5))
    assert [shape(step(engine))[0][0] for _ in range(4)] == ["a", "a", "a", "urgent"]


def test_admission_leaves_room_for_running_prefills() -> None:
    engine = scheduler(num_blocks=7, block_size=4, tokens=8)
    engine.add(request("a", prompt=17, max_tokens=1))
    engine.add(request("b", prompt=8, max_tokens=1))
    plans = [shape(step(engine)) for _ in range(4)]
    assert plans == [[("a", 0, 8, 0)], [("a", 8, 8, 0)], [("a", 16, 1, 1)], [("b", 0, 8, 1)]]


@pytest.mark.parametrize(("prompt_blocks", "running"), [(61, 2), (62, 1)])
def test_admission_leaves_headroom_for_those_that_run(prompt_blocks: int, running: int) -> None:
    engine = scheduler(num_blocks=65, block_size=4, tokens=1000, length=1000)
    engine.add(request("a", prompt=5, max_tokens=90))
    step(engine)
    engine.add(request("b", prompt=prompt_blocks * 4, max_tokens=2))  # 62 blocks are left, and a will need one
    step(engine)
    assert engine.num_running == running


def test_a_lone_request_that_fills_the_pool_runs() -> None:
    engine = scheduler(num_blocks=5, block_size=4)
    r = request("a", prompt=9, max_tokens=8)
    engine.add(r)
    while engine.has_work:
        assert step(engine).chunks
    assert r.sequences[0].num_output_tokens == 8
    assert r.sequences[0].num_preemptions == 0


def test_a_prefix_is_shared_between_requests_of_one_salt_and_adapter() -> None:
    engine = scheduler()
    prompt = tuple(range(9))
    engine.add(Request("a", prompt, 2))
    step(engine)
    for name, options in [
        ("b", {}),
        ("c", {"cache_salt": "x"}),
        ("d", {"adapter": 1}),
        ("e", {"read_prefix_cache": False}),
    ]:
        engine.add(Request(name, prompt, 2, **options))  # type: ignore[arg-type]
    plan = engine.schedule()
    assert {c.sequence.request.request_id: c.sequence.num_cached_tokens for c in plan.chunks} == {
        "a": 0,
        "b": 8,
        "c": 0,
        "d": 0,
        "e": 0,
    }


def test_a_blocked_head_enters_when_its_prefix_was_computed_by_another() -> None:
    engine = scheduler(num_blocks=8, block_size=4, tokens=10)
    engine.add(Request("a", tuple(range(17)), 6))
    engine.add(Request("b", tuple(range(17)), 6))  # alone it would need 5 of the 7 blocks
    plans = [shape(step(engine)) for _ in range(3)]
    assert plans == [[("a", 0, 10, 0)], [("a", 10, 7, 1)], [("a", 17, 1, 1), ("b", 16, 1, 1)]]


@pytest.mark.parametrize("when", ["waiting", "running", "forked", "preempted"])
def test_abort_frees_everything_wherever_it_is(when: str) -> None:
    engine = scheduler(num_blocks=7)
    r = request("r", prompt=8, max_tokens=12, n=2, priority=1)
    engine.add(r)
    if when == "running":
        engine.schedule()
    if when in ("forked", "preempted"):
        step(engine)
    if when == "preempted":
        engine.add(request("other", prompt=8, max_tokens=12))
        while not any(s.num_preemptions for s in r.sequences):
            step(engine)
        engine.abort("other")
    assert engine.abort("r")
    assert not engine.abort("r")
    assert all(s.finish_reason is FinishReason.ABORT for s in r.sequences)
    engine.check_integrity()
    assert not engine.has_work
    assert engine.blocks.stats().used_blocks == 0


def test_a_chunk_of_a_request_that_was_aborted_meanwhile_gives_nothing() -> None:
    engine = scheduler()
    for name in ("before its launch", "after its launch"):
        engine.add(request(name))
        plan = engine.schedule()
        if name == "after its launch":
            engine.launched(plan)
        engine.abort(name)
        if name == "before its launch":
            engine.launched(plan)
        assert plan.chunks[0].is_wasted
        assert engine.advance(plan.chunks[0], [1]) == []
        engine.check_integrity()
    assert engine.blocks.stats().used_blocks == 0


def test_a_pending_sibling_that_was_finished_drops_its_token() -> None:
    engine = scheduler()
    r = request("a", n=3)
    engine.add(r)
    engine.finish(r.sequences[1], FinishReason.STOP)
    plan = engine.schedule()
    engine.launched(plan)
    assert engine.advance(plan.chunks[0], [5, 6, 7]) == [r.sequences[0], r.sequences[2]]
    assert [s.num_output_tokens for s in r.sequences] == [1, 0, 1]
    assert r.sequences[2].token_ids[-1] == 7
    engine.check_integrity()


def test_siblings_end_with_sequence_zero_before_the_fork() -> None:
    engine = scheduler()
    r = request("a", n=3)
    engine.add(r)
    engine.schedule()
    engine.finish(r.sequences[0], FinishReason.ERROR)
    assert r.is_finished
    assert not engine.has_work
    engine.check_integrity()


def test_finishing_twice_keeps_the_first_reason() -> None:
    engine = scheduler()
    r = request("a")
    engine.add(r)
    engine.finish(r.sequences[0], FinishReason.STOP)
    engine.finish(r.sequences[0], FinishReason.ABORT)
    assert r.sequences[0].finish_reason is FinishReason.STOP


def test_first_scheduled_time_is_of_the_first_admission() -> None:
    engine = scheduler(num_blocks=7)
    first, second = request("a", prompt=8, max_tokens=12), request("b", prompt=8, max_tokens=12)
    engine.add(first)
    engine.add(second)
    while engine.has_work:
        step(engine)
    assert second.sequences[0].num_preemptions
    assert [r.sequences[0].first_scheduled_time for r in (first, second)] == [0.0, 1.0]


def test_the_queue_has_a_cap() -> None:
    engine = scheduler(waiting=2)
    engine.add(request("a"))
    engine.add(request("b"))
    with pytest.raises(QueueFullError, match="2 requests are waiting, and max_waiting is 2"):
        engine.add(request("c"))
    engine.abort("a")
    engine.add(request("c"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 9}, "n is 9; at most 8 sequences run at a time"),
        (
            {"prompt": 90, "max_tokens": 11},
            "90 tokens and max_tokens is 11, together 101; max_model_len allows 100",
        ),
        ({"prompt": 101}, "together 105; max_model_len allows 100"),
    ],
)
def test_what_could_never_run_is_refused_with_the_largest_that_could(options: dict[str, Any], sentence: str) -> None:
    engine = scheduler()
    with pytest.raises(RequestTooLargeError, match=sentence):
        engine.add(request("a", **options))
    assert not engine.has_work


def test_what_never_fits_the_pool_is_refused_and_the_largest_that_fits_runs() -> None:
    engine = scheduler(num_blocks=5, block_size=4)
    with pytest.raises(RequestTooLargeError, match="together 18; the KV cache allows 17"):
        engine.add(request("a", prompt=10, max_tokens=8))
    engine.add(request("a", prompt=10, max_tokens=7))
    while engine.has_work:
        step(engine)


def test_an_id_in_use_is_refused() -> None:
    engine = scheduler()
    engine.add(request("a"))
    with pytest.raises(InvalidRequestError, match="'a' is running already"):
        engine.add(request("a"))


def test_limits_that_no_step_could_keep_are_refused() -> None:
    with pytest.raises(ConfigError, match="it must be at least 8"):
        SchedulerConfig(8, 7, 100, 10)
    with pytest.raises(ConfigError, match="max_waiting must be at least 1"):
        SchedulerConfig(8, 8, 100, 0)


def test_wrong_numbers_of_tokens_and_outdated_chunks_are_refused() -> None:
    engine = scheduler()
    engine.add(request("a"))
    plan = engine.schedule()
    (chunk,) = plan.chunks
    with pytest.raises(ValueError, match="1 tokens were to be sampled"):
        engine.advance(chunk, [])
    for _ in range(2):  # before its launch, and once it was advanced
        with pytest.raises(ValueError, match="waits for no token"):
            engine.advance(chunk, [1])
        if not chunk.sequence.num_output_tokens:
            engine.launched(plan)
            engine.advance(chunk, [1])


class TestThePlanCheckFinds:
    def test_a_write_into_a_shared_block(self) -> None:
        engine = scheduler()
        engine.add(request("a"))
        plan = engine.schedule()
        engine.blocks.fork(plan.chunks[0].sequence.block_table, [])
        with pytest.raises(IntegrityError, match="no block of its own"):
            plan.check_integrity(engine.blocks)

    @pytest.mark.parametrize(
        ("copies", "fact"),
        [(((1, 2), (3, 2)), "target of two copies"), (((1, 2), (2, 3)), "source and target")],
    )
    def test_copies_that_depend_on_their_order(self, copies: tuple[tuple[int, int], ...], fact: str) -> None:
        with pytest.raises(IntegrityError, match=fact):
            Plan((), copies, (), 0, 0).check_integrity(scheduler().blocks)

    def test_a_sequence_that_the_plan_preempted(self) -> None:
        engine = scheduler()
        engine.add(request("a"))
        plan = engine.schedule()
        sequence = plan.chunks[0].sequence
        with pytest.raises(IntegrityError, match="was preempted by it"):
            Plan(plan.chunks, (), (sequence,), plan.num_tokens, 0).check_integrity(engine.blocks)


def test_the_check_finds_lanes_and_queues_that_do_not_agree() -> None:
    engine = scheduler(seqs=2)
    engine.add(request("a"))
    lane = engine._free_lanes.pop()
    with pytest.raises(IntegrityError, match=r"Of 2 lanes \[\] are taken and \[1\] are free"):
        engine.check_integrity()
    engine._free_lanes.append(lane)
    engine._waiting.items.clear()
    with pytest.raises(IntegrityError, match="A sequence is in a queue"):
        engine.check_integrity()


class TestAPlanIsMadeWhileAnotherIsInFlight:
    """`launched` was called for the plan before, and `advance` was not."""

    def test_a_pending_token_is_computed_next(self) -> None:
        engine = scheduler()
        engine.add(request("a", prompt=6, max_tokens=9))
        first = engine.schedule()
        engine.launched(first)
        second = engine.schedule()
        second.check_integrity(engine.blocks)
        assert shape(second) == [("a", 6, 1, 1)]
        (sequence,) = first.chunks[0].receivers
        assert (sequence.num_tokens, sequence.num_output_tokens) == (7, 0)
        assert engine.advance(first.chunks[0], [5]) == [sequence]
        engine.launched(second)
        engine.check_integrity()
        assert (sequence.num_tokens, sequence.num_output_tokens, sequence.num_computed_tokens) == (8, 1, 7)

    def test_siblings_decode_from_their_pending_tokens(self) -> None:
        engine = scheduler()
        engine.add(request("a", prompt=6, max_tokens=9, n=3))
        first = engine.schedule()
        engine.launched(first)
        second = engine.schedule()
        second.check_integrity(engine.blocks)
        assert [(c.sequence.index, c.start, c.samples) for c in second.chunks] == [(0, 6, 1), (1, 6, 1), (2, 6, 1)]
        assert len(second.copies) == 2
        assert len({c.sequence.lane for c in second.chunks}) == 3

    def test_a_sequence_whose_pending_token_is_its_last_is_not_planned(self) -> None:
        engine = scheduler()
        engine.add(request("ends", max_tokens=1))
        engine.add(request("goes on", max_tokens=2))
        first = engine.schedule()
        engine.launched(first)
        assert [name for name, *_ in shape(engine.schedule())] == ["goes on"]

    def test_a_plan_is_empty_where_everything_ends_with_what_is_in_flight(self) -> None:
        engine = scheduler()
        engine.add(request("a", max_tokens=1))
        first = engine.schedule()
        engine.launched(first)
        assert engine.schedule().chunks == ()
        assert engine.has_work
        engine.finish(*engine.advance(first.chunks[0], [5]), FinishReason.LENGTH)
        assert not engine.has_work

    def test_a_chunked_prefill_goes_on_behind_the_chunk_in_flight(self) -> None:
        engine = scheduler(tokens=8)
        engine.add(request("a", prompt=20))
        plans = []
        for _ in range(4):
            plans.append(engine.schedule())
            engine.launched(plans[-1])  # the plan before samples nothing, so there is nothing to advance
        assert [shape(plan) for plan in plans] == [
            [("a", 0, 8, 0)],
            [("a", 8, 8, 0)],
            [("a", 16, 4, 1)],
            [("a", 20, 1, 1)],
        ]

    def test_a_prefix_in_flight_is_shared_and_a_pending_token_is_not(self) -> None:
        engine = scheduler(block_size=4)
        engine.add(Request("a", tuple(range(11)), 9))
        first = engine.schedule()
        engine.launched(first)
        engine.add(Request("b", (*range(11), 77, 78, 79), 9))
        second = engine.schedule()  # a writes its pending token into slot 11, the last of its third block
        assert shape(second) == [("a", 11, 1, 1), ("b", 8, 6, 1)]
        engine.advance(first.chunks[0], [99])
        engine.launched(second)
        engine.check_integrity()
        engine.add(Request("c", (*range(11), 99, 78, 79), 9))
        assert shape(engine.schedule())[-1] == ("c", 12, 2, 1)

    def test_a_row_that_turned_out_to_be_wasted_gives_nothing_and_its_blocks_are_free(self) -> None:
        engine = scheduler(block_size=4)
        engine.add(request("a", prompt=7, max_tokens=9))
        first = engine.schedule()
        engine.launched(first)
        second = engine.schedule()
        (sequence,) = engine.advance(first.chunks[0], [5])
        engine.finish(sequence, FinishReason.STOP)
        engine.launched(second)
        engine.check_integrity()
        assert second.chunks[0].is_wasted
        assert engine.advance(second.chunks[0], [6]) == []
        assert sequence.num_output_tokens == 1
        stats = engine.blocks.stats()
        assert (stats.used_blocks, stats.cached_blocks) == (0, 1)  # the block the row writes to is not offered

    def test_who_is_preempted_takes_the_pending_token_along(self) -> None:
        engine = scheduler(num_blocks=4, block_size=4)
        engine.add(request("a", prompt=4, max_tokens=8))
        engine.add(request("b", prompt=4, max_tokens=8))
        first = engine.schedule()
        engine.launched(first)
        second = engine.schedule()  # both need a second block, and one is left
        (victim,) = second.preempted
        assert (victim.request.request_id, victim.num_tokens, victim.lane) == ("b", 5, -1)
        for chunk in first.chunks:
            engine.advance(chunk, [9])
        engine.launched(second)
        engine.check_integrity()
        assert list(victim.output_token_ids) == [9]
        engine.abort("a")
        assert shape(engine.schedule()) == [("b", 4, 1, 1)]  # its prompt is in the prefix cache

    def test_restart_computes_everything_again_and_expects_no_token(self) -> None:
        engine = scheduler(block_size=4)
        engine.add(request("a", prompt=6, max_tokens=9, n=2))
        first = engine.schedule()
        engine.launched(first)
        engine.schedule()
        restarted = engine.restart()
        engine.check_integrity()
        assert [sequence.num_tokens for sequence in restarted] == [6, 6]
        assert engine.blocks.stats().cached_blocks == 0
        assert [chunk[1:] for chunk in shape(step(engine))] == [(0, 6, 1), (0, 6, 1)]
