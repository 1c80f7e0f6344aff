"""The engine's warm-up on a card: each decode bucket is recorded before the first request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.backend.discovery import OpenedDevice
from octavo_conformance.oracles.models import ModelSpec, tiny_model

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
    memory = 0

    def __init__(self, runtime: Any, work: Callable[[], None]) -> None:
        if runtime.fail is not None:
            raise runtime.fail
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
    assert [record.name for record in caplog.records] == ["octavo_torch.gpu.graphs"]
    assert "16 sequences and 16 blocks could not be recorded" in caplog.records[0].message
    assert runtime.recorded == before  # the card had no room for one: none is tried after it
    assert _tokens(llm) == expected
