"""Warm-up compiles and records what requests will need, and nothing else can be told to have happened."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.backend import BackendError, Bucket, DeviceLostError, DeviceOutOfMemoryError, Step
from octavo.backend.tree import flatten
from octavo.engine import Engine
from octavo.packing import StepShape, padded_size
from octavo.warm_up import GREEDY, NUCLEUS, RANDOM, rehearsals, warm_up
from octavo_conformance.oracles.models import ModelSpec, tiny_model

FIXTURES = Path(__file__).parents[1] / "fixtures"
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8] * 9, [9], [1, 2, 3, 9]]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, n=2),  # no seed: the engine deals one
    SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, repetition_penalty=1.3, logprobs=2),
]

Open = Callable[..., LLM]


@pytest.fixture
def open_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens engines on a tiny model: 12 sequences of 100 tokens at most, so buckets of 16 and 8, and 32, 16 and 8."""
    for folder in ("async_backend", "static_backend"):
        monkeypatch.syspath_prepend(str(FIXTURES / folder))
    opened: list[LLM] = []

    def open_llm(backend: str, **options: Any) -> LLM:
        settings: dict[str, Any] = {
            "max_num_seqs": 12, "max_model_len": 100, "max_num_batched_tokens": 24, "block_size": 4, "sanitize": True,
            **options,
        }  # fmt: skip
        llm = LLM(
            tiny_model(ModelSpec("llama")).directory, backend=backend, dtype="float32", kv_cache_memory="1MiB",
            check_integrity=True, **settings,
        )  # fmt: skip
        opened.append(llm)
        return llm

    yield open_llm
    for llm in opened:
        llm.close()
    for name in ("octavo_async", "octavo_static"):
        sys.modules.pop(name, None)


def _device(llm: LLM) -> Any:
    return llm.engine._runner._device


def _shapes(*blocks: int, sequences: int) -> list[tuple[StepShape, SamplingParams]]:
    return [(StepShape(sequences, 1, width), params) for width in blocks for params in (GREEDY, RANDOM)]


PREFILL = (StepShape(1, 24, 6), GREEDY)
BUCKETS = _shapes(32, 16, 8, sequences=16) + _shapes(32, 16, 8, sequences=8)
PREFILL_SIZES = [StepShape(1, 32, 8), StepShape(1, 32, 8, rows=12), StepShape(1, 16, 4), StepShape(1, 16, 4, rows=12)]
LARGEST, *PADDED_PREFILLS = [
    (shape, params) for shape in (*PREFILL_SIZES, StepShape(1, 8, 2)) for params in (GREEDY, RANDOM)
]
WIDEST = [each for each in BUCKETS if each[0].blocks == 32]
NUCLEI = [(shape, NUCLEUS) for shape, params in (*WIDEST, LARGEST, *PADDED_PREFILLS) if params is GREEDY]
NARROWER = [each for each in BUCKETS if each[0].blocks < 32]
ALL_SIZES = [WIDEST[0], LARGEST, *WIDEST[1:], *PADDED_PREFILLS, *NUCLEI, *NARROWER]


def _rehearsals(llm: LLM) -> list[tuple[StepShape, SamplingParams]]:
    runner = llm.engine._runner
    return list(rehearsals(llm.engine.info, runner.pads_decodes, runner.pads_prefills))


@pytest.mark.parametrize(
    ("backend", "expected"), [("capturing", [PREFILL, *BUCKETS]), ("async", [PREFILL, *_shapes(25, sequences=12)])]
)
def test_the_largest_prefill_comes_first_and_then_decodes_from_the_largest_down(
    open_llm: Open, backend: str, expected: list[Any]
) -> None:
    assert _rehearsals(open_llm(backend, warm_up_seconds=0)) == expected


def test_on_a_static_device_the_largest_decode_comes_first_then_the_largest_prefill_and_in_the_end_every_size(
    open_llm: Open,
) -> None:
    assert _rehearsals(open_llm("async-static", warm_up_seconds=0)) == ALL_SIZES


@pytest.mark.parametrize(("longest", "tokens", "sequences"), [(100, 24, 12), (20, 64, 12), (33, 65, 9), (9, 100, 3)])
def test_on_a_static_device_prefills_are_rehearsed_up_to_the_most_tokens_of_a_step(
    open_llm: Open, longest: int, tokens: int, sequences: int
) -> None:
    options = {"max_model_len": longest, "max_num_batched_tokens": tokens, "max_num_seqs": sequences}
    llm = open_llm("async-static", warm_up_seconds=0, **options)
    shapes = [shape for shape, _ in _rehearsals(llm) if not shape.decode_only]
    assert all(shape.tokens <= longest and shape.sequences <= sequences for shape in shapes)
    largest = padded_size(min(tokens, longest * sequences), True)
    sizes = {padded_size(shape.sequences * shape.tokens, True) for shape in shapes}
    assert sizes == {size for size in (8, 16, 32, 64, 128) if size <= largest}


@pytest.mark.parametrize("backend", ["async", "async-static", "capturing"])
def test_clients_are_told_the_same_with_and_without_a_warm_up(open_llm: Open, backend: str) -> None:
    cold, warm = (open_llm(backend, warm_up_seconds=seconds) for seconds in (0, 60))
    assert warm.engine.stats() == cold.engine.stats()
    for _ in range(2):  # the second time from the prefix cache
        expected, results = (llm.generate(PROMPTS, PARAMS) for llm in (cold, warm))
        assert [each.outputs for each in results] == [each.outputs for each in expected]
    assert warm.engine.stats() == cold.engine.stats()


@pytest.mark.parametrize("backend", ["async", "async-static", "capturing"])
def test_only_the_null_block_is_written(open_llm: Open, backend: str) -> None:
    llm = open_llm(backend, warm_up_seconds=0, sanitize=False)
    runner = llm.engine._runner
    for layer in runner._kv:
        layer[...] = 7.0
    warm_up(runner, llm.engine.info, 60.0)
    for layer in runner._kv:
        assert (layer[:, 1:] == 7.0).all()
        assert not (layer[:, 0] == 7.0).all()


def test_what_was_warmed_up_is_not_compiled_again(open_llm: Open) -> None:
    llm = open_llm("capturing")
    buckets = _device(llm).buckets
    assert len(buckets) == len(set(buckets)) == 1 + len(BUCKETS)
    plain = [SamplingParams(temperature=t, max_tokens=40, ignore_eos=True) for t in (0.0, 1.0)]
    for params in plain:
        llm.generate([[token] for token in range(12)], params)
    # A prompt of one token is a decode as well; only a prefill with a temperature was not rehearsed.
    assert [bucket.decode_only for bucket in buckets[1 + len(BUCKETS) :]] == []
    llm.generate(PROMPTS[1], plain[1])
    assert [bucket.decode_only for bucket in buckets[1 + len(BUCKETS) :]] == [False]


Programs = set[tuple[object, ...]]


@pytest.fixture
def programs(open_llm: Open, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """What `async-static` would compile if it had a program for each step function, number of tokens and of rows, with
    block tables as large as the largest so far.
    """
    kind, found, tables = import_module("octavo_async").AsyncDevice, set(), [0, 0]
    original = kind.compile

    def compile_recorded(device: Any, step: Step, bucket: Bucket) -> Step:
        run = original(device, step, bucket)

        def recorded(*args: Any) -> Any:
            tables[:] = map(max, tables, (bucket.sequences, bucket.blocks))
            found.add((step, bucket.tokens, bucket.rows, bucket.decode_only, *tables))
            return run(*args)

        return recorded

    monkeypatch.setattr(kind, "compile", compile_recorded)
    return found


@pytest.mark.parametrize("options", [{}, {"max_num_seqs": 8}, {"max_model_len": 20, "max_num_batched_tokens": 64}])
def test_after_a_full_warm_up_a_static_device_compiles_nothing_for_prefills_mixed_with_decodes(
    open_llm: Open, programs: Programs, options: dict[str, int]
) -> None:
    llm = open_llm("async-static", warm_up_seconds=1000, **options)
    warm = set(programs)
    rng = np.random.default_rng(0)
    for temperatures, top_p in (((0.0,), 1.0), ((1.0,), 1.0), ((0.0, 1.0), 1.0), ((0.0, 1.0), 0.8)):
        prompts = [rng.integers(0, 256, length).tolist() for length in rng.integers(1, 9, 30)]
        params = [
            SamplingParams(
                temperature=temperatures[index % len(temperatures)], top_p=top_p, max_tokens=length, ignore_eos=True
            )
            for index, length in enumerate(rng.integers(4, 12, 30).tolist())
        ]
        llm.generate(prompts, params)
    met = {(bucket.tokens, bucket.decode_only) for bucket in llm.engine._runner._steps}
    assert met >= {(8, True), (8, False), (16, False), (32, False)}
    assert programs == warm


def test_a_decode_is_run_twice_where_the_second_run_is_recorded_and_once_elsewhere(
    open_llm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asynchronous = open_llm("async-static")
    assert _device(asynchronous).steps == len(ALL_SIZES)
    capturing = open_llm("capturing", warm_up_seconds=0)
    staged = []
    stage = _device(capturing).stage
    monkeypatch.setattr(_device(capturing), "stage", lambda inputs: staged.append(inputs) or stage(inputs))
    warm_up(capturing.engine._runner, capturing.engine.info, 60.0)
    assert len(staged) == 1 + 2 * len(BUCKETS)
    sizes = [inputs.attention.block_tables.shape for inputs in staged]
    assert sizes[:5] == [(1, 6), (16, 32), (16, 32), (16, 32), (16, 32)]
    assert sizes[-1] == (8, 8)


def test_every_array_of_a_rehearsal_is_int32_and_its_sampler_is_the_plain_one(open_llm: Open) -> None:
    for inputs in _device(open_llm("async-static")).staged:
        meta = inputs.attention
        for array in flatten((meta, inputs.token_ids, inputs.logit_rows, inputs.feedback.lane_of_token))[0]:
            assert array.dtype == np.int32
        assert meta.slots.max() < 4  # the null block's
        assert not meta.block_tables.any()
        assert inputs.sampling.edit_ids is None
        assert set(inputs.feedback.row_of_lane.tolist()) == {-1}


@pytest.mark.parametrize(("seconds", "runs"), [(1.0, 2), (25.0, 4), (55.0, 7), (1000.0, len(ALL_SIZES))])
def test_no_rehearsal_begins_after_its_time_but_the_first_two(open_llm: Open, seconds: float, runs: int) -> None:
    llm = open_llm("async-static", warm_up_seconds=0)
    told: list[float] = []
    ticks = count(0.0, 10.0)  # each look at the clock finds ten seconds gone

    def progress(stage: str, fraction: float) -> None:
        assert "decode" in stage
        told.append(fraction)

    warm_up(llm.engine._runner, llm.engine.info, seconds, progress, lambda: next(ticks))
    assert _device(llm).steps == runs
    assert told == sorted(told)
    assert (told[0], told[-1], len(told)) == (0.0, 1.0, runs + 1)


def test_progress_is_shown_while_the_engine_is_made(open_llm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    original = Engine.from_config
    monkeypatch.setattr(
        Engine, "from_config", lambda config, _: original(config, lambda stage, fraction: stages.append(stage))
    )
    open_llm("async")
    assert stages[-4:] == ["compiling kernels and recording decode steps"] * 4


@pytest.mark.parametrize("backend", ["reference", "static"])
def test_a_host_device_has_no_warm_up(open_llm: Open, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rehearse(*_: object) -> None:
        raise AssertionError("rehearsed")

    monkeypatch.setattr("octavo.runner.Runner.rehearse", rehearse)
    open_llm(backend)


def test_a_step_that_does_not_fit_ends_the_warm_up_with_a_sentence_and_requests_are_served(
    open_llm: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = open_llm("async", warm_up_seconds=0).generate(PROMPTS, PARAMS)
    llm = open_llm("async-static", warm_up_seconds=0)
    device = _device(llm)
    download, calls = device.download, count()

    def full(array: Any) -> Any:
        if next(calls) == 2:
            raise DeviceOutOfMemoryError("A step does not fit the device's memory: 5 of 9 bytes are free.")
        return download(array)

    monkeypatch.setattr(device, "download", full)
    with caplog.at_level(logging.WARNING):
        warm_up(llm.engine._runner, llm.engine.info, 60.0)
    (record,) = caplog.records
    assert "16 sequences with 1 tokens each and 32 blocks" in record.message
    assert record.message.endswith("5 of 9 bytes are free.")
    assert device.steps == 3
    assert [each.outputs[0].token_ids for each in llm.generate(PROMPTS, PARAMS)] == [
        each.outputs[0].token_ids for each in expected
    ]


def test_a_device_that_is_lost_in_the_warm_up_ends_the_start_with_a_sentence(
    open_llm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_llm("async", warm_up_seconds=0)  # finds the module
    kind, closed = sys.modules["octavo_async"].AsyncDevice, []

    def stage(*_: object) -> None:
        raise DeviceLostError("fell off the bus")

    monkeypatch.setattr(kind, "stage", stage)
    monkeypatch.setattr(kind, "close", lambda self: closed.append(self), raising=False)
    with pytest.raises(BackendError, match=r"backend 'async' was lost in the warm-up: DeviceLostError: fell off"):
        open_llm("async")
    assert len(closed) == 1


def test_a_static_device_whose_first_steps_do_not_fit_does_not_start(
    open_llm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_llm("async", warm_up_seconds=0)  # finds the module
    kind = sys.modules["octavo_async"].AsyncDevice

    def stage(*_: object) -> None:
        raise DeviceOutOfMemoryError("The step needs 9 bytes, of which 5 are there; 3 sequences would fit.")

    monkeypatch.setattr(kind, "stage", stage)
    with pytest.raises(DeviceOutOfMemoryError, match="3 sequences would fit"):
        open_llm("async-static")
    open_llm("async")  # which pads nothing: its requests need smaller steps
