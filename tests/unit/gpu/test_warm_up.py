"""The engine's warm-up on a card: each decode bucket is recorded before the first request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.backend import KVCache, Step
from octavo.backend.discovery import OpenedDevice
from octavo_conformance.oracles.models import ModelSpec, tiny_model
from octavo_torch.gpu.graphs import Recording
from octavo_torch.gpu.uploads import Staged

BUCKETS = 2 * 2 * 2  # 16 and 8 sequences, 16 and 8 blocks, greedy and random


@pytest.fixture
def open_llm(
    open_device: Callable[..., Any], runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LLM]]:
    """Opens engines on the card. Its recordings run the step again: torch's attention, which looks at values, would be
    wrong if only its operations were played back.
    """
    monkeypatch.setattr(runtime, "record", lambda work: _Again(runtime, work))
    opened: list[LLM] = []

    def open_llm(**options: Any) -> LLM:
        device = open_device()
        monkeypatch.setattr("octavo.loading.open_device", lambda config: OpenedDevice(device, "fake", "1", "asked for"))
        llm = LLM(
            tiny_model(ModelSpec("llama")).directory, dtype="float32", kv_cache_memory="2MiB", max_model_len=128,
            block_size=8, max_num_seqs=16, max_num_batched_tokens=32, **options,
        )  # fmt: skip
        opened.append(llm)
        return llm

    yield open_llm
    for llm in opened:
        llm.close()


class _Again:
    def __init__(self, runtime: Any, work: Callable[[], None]) -> None:
        if runtime.fail is not None:
            raise runtime.fail
        self.memory = runtime.graph_memory
        runtime.recorded += 1
        self._runtime, self._work = runtime, work
        work()

    def replay(self) -> None:
        self._runtime.replayed += 1
        self._work()


def _tokens(llm: LLM) -> list[list[int]]:
    params = [SamplingParams(temperature=t, seed=2, max_tokens=10, ignore_eos=True) for t in (0.0, 1.0)]
    results = [llm.generate([[1, 2, 3], [4] * 40, [5]], each) for each in params]
    return [output.token_ids for result in results for each in result for output in each.outputs]


def test_every_decode_bucket_is_recorded_at_start_up_and_replayed_by_requests(
    open_llm: Callable[..., LLM], runtime: Any
) -> None:
    expected = _tokens(open_llm(warm_up_seconds=0))
    before = runtime.recorded
    llm = open_llm(warm_up_seconds=600)
    assert runtime.recorded - before == BUCKETS
    replayed = runtime.replayed
    assert _tokens(llm) == expected
    assert runtime.recorded - before == BUCKETS
    assert runtime.replayed - replayed > 15


def test_a_recording_that_does_not_fit_is_no_error_and_its_bucket_runs_without(
    open_llm: Callable[..., LLM], runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _tokens(open_llm(warm_up_seconds=0))
    before = runtime.recorded
    runtime.fail = torch.OutOfMemoryError("Tried to allocate 2 GiB")
    with caplog.at_level(logging.WARNING):
        llm = open_llm(warm_up_seconds=600)
    said = [record.getMessage() for record in caplog.records if record.name == "octavo_torch.gpu.graphs"]
    assert ["16 sequences and 16 blocks" in said[0], "8 sequences and 16 blocks" in said[1]] == [True, True]
    assert "a lower max_num_seqs or gpu_memory_utilization leaves room" in said[0]
    assert len(said) == 2  # of each size one: where there is no room for a step, there is none for its like
    assert runtime.recorded == before
    assert _tokens(llm) == expected


def test_smaller_steps_are_recorded_where_the_largest_do_not_fit(
    open_llm: Callable[..., LLM], runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Recording.make.__func__  # type: ignore[attr-defined]  # of a class method

    def limited(cls: type[Recording], runtime: Any, step: Step, weights: Any, kv: KVCache, staged: Staged) -> Recording:
        if staged.inputs.attention.block_tables.shape[0] > 8:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB")
        made: Recording = make(cls, runtime, step, weights, kv, staged)
        return made

    monkeypatch.setattr(Recording, "make", classmethod(limited))
    open_llm(warm_up_seconds=600)
    assert runtime.recorded == BUCKETS / 2


def test_recordings_that_no_request_uses_make_room_for_those_that_one_does(
    open_llm: Callable[..., LLM], runtime: Any
) -> None:
    runtime.graph_memory = runtime.memory().total // 100  # three are the whole of what graphs may take
    llm = open_llm(warm_up_seconds=600)
    assert runtime.recorded == 3  # the largest ones
    replayed = runtime.replayed
    llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True))
    assert runtime.recorded == 3 + 2  # of 8 blocks and then of 16
    assert runtime.replayed - replayed > 50
