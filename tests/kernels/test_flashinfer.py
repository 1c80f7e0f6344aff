"""FlashInfer's attention on a stand-in for the library: what is planned, what runs where, what may be in flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from octavo.backend import AttentionMetadata, DType, KVLayout, StepInputs
from octavo_cuda.flashinfer import FlashInferKernels, Pages
from octavo_torch.kernels.launch import KernelRuntime

LAYOUT = KVLayout(1, 2, 64, 16, DType.FLOAT16, (None,), query_heads=8)


class Wrapper:
    """One of FlashInfer's: remembers what it was planned with, and answers with zeros."""

    def __init__(self, workspace: torch.Tensor, kv_layout: str, **options: Any) -> None:
        self.workspace, self.kv_layout, self.options = workspace, kv_layout, options
        self.planned: tuple[Any, ...] = ()
        self.with_options: dict[str, Any] = {}
        self.ran: list[dict[str, Any]] = []

    def plan(self, *arguments: Any, **options: Any) -> None:
        self.planned, self.with_options = arguments, options

    def run(self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor], **options: Any) -> torch.Tensor:
        self.ran.append(options)
        return torch.zeros_like(q)


class Library:
    """The module, as far as it is used."""

    def __init__(self) -> None:
        self.decode: list[Wrapper] = []
        self.prefill: list[Wrapper] = []

    def BatchDecodeWithPagedKVCacheWrapper(self, *arguments: Any, **options: Any) -> Wrapper:  # noqa: N802
        self.decode.append(Wrapper(*arguments, **options))
        return self.decode[-1]

    def BatchPrefillWithPagedKVCacheWrapper(self, *arguments: Any, **options: Any) -> Wrapper:  # noqa: N802
        self.prefill.append(Wrapper(*arguments, **options))
        return self.prefill[-1]


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def kernels(runtime: KernelRuntime, library: Library, monkeypatch: pytest.MonkeyPatch) -> FlashInferKernels:
    monkeypatch.setattr("octavo_cuda.flashinfer.WORKSPACE", 1024)
    return FlashInferKernels(runtime, library)


def inputs(sequences: Sequence[tuple[int, int]], blocks: int = 4) -> StepInputs:
    """sequences: (context length, queries) of each."""
    contexts = np.array([context for context, _ in sequences], np.int32)
    counts = [queries for _, queries in sequences]
    tokens = sum(counts)
    meta = AttentionMetadata(
        positions=np.zeros(tokens, np.int32),
        slots=np.zeros(tokens, np.int32),
        sequences=np.repeat(np.arange(len(counts)), counts).astype(np.int32),
        query_starts=np.cumsum([0, *counts]).astype(np.int32),
        context_lengths=contexts,
        block_tables=(np.arange(len(counts) * blocks).reshape(-1, blocks) + 1).astype(np.int32),
        decode_only=max(counts) == 1,
    )
    return StepInputs(np.zeros(tokens, np.int32), np.zeros(1, np.int32), meta)


def test_block_tables_become_compressed_rows() -> None:
    pages = Pages.of(inputs([(1, 1), (16, 1), (17, 1), (64, 1), (0, 1)]).attention, 16)
    assert pages.page_starts.tolist() == [0, 1, 2, 4, 8, 9]
    assert pages.pages.tolist() == [1, 5, 9, 10, 13, 14, 15, 16, 17]
    assert pages.last_page_lengths.tolist() == [1, 16, 1, 16, 1]
    assert {array.dtype for array in (pages.page_starts, pages.pages, pages.last_page_lengths)} == {np.dtype(np.int32)}


def test_decodes_and_prefills_are_planned_by_their_own_wrappers(kernels: FlashInferKernels, library: Library) -> None:
    kernels.allocate_kv(LAYOUT, 20, torch.device("cpu"))
    kernels.plan(inputs([(17, 1), (3, 1)]))
    planned = next(wrapper for wrapper in library.decode if wrapper.planned)
    assert [argument.tolist() for argument in planned.planned[:3]] == [[0, 2, 3], [1, 2, 5], [1, 3]]
    assert planned.planned[3:] == (8, 2, 64, 16)
    assert planned.options == {"use_tensor_cores": True}  # four query heads to a KV head
    assert planned.with_options["q_data_type"] is planned.with_options["kv_data_type"] is torch.float16
    kernels.plan(inputs([(17, 1), (20, 5)]))
    planned = next(wrapper for wrapper in library.prefill if wrapper.planned)
    assert planned.planned[0].tolist() == [0, 1, 6]
    assert planned.with_options["causal"] is True
    assert len({id(wrapper.workspace) for wrapper in (*library.decode, *library.prefill)}) == 1


def test_the_plan_of_a_step_in_flight_is_not_written_over(kernels: FlashInferKernels, library: Library) -> None:
    kernels.allocate_kv(LAYOUT, 20, torch.device("cpu"))
    plans = [kernels.plan(inputs([(context, 1)])).attention.plan for context in (5, 6, 7, 8)]
    assert [plan.wrapper for plan in plans] in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert sorted(int(wrapper.planned[2][0]) for wrapper in library.decode) == [7, 8]


def test_what_it_was_planned_for_runs_there_and_all_else_on_octavos_kernels(
    kernels: FlashInferKernels, library: Library
) -> None:
    kv = kernels.allocate_kv(LAYOUT, 20, torch.device("cpu"))[0]
    kv.keys.normal_(), kv.values.normal_()
    host = kernels.plan(inputs([(17, 1), (3, 1)]))
    arrays = {
        name: torch.from_numpy(getattr(host.attention, name))
        for name in host.attention.__dataclass_fields__
        if isinstance(getattr(host.attention, name), np.ndarray)
    }
    meta = replace(host.attention, **arrays)
    q = torch.randn(2, 8, 64, dtype=torch.float16)
    out = kernels.ops.paged_attention(q, kv, meta, 0.125)
    assert not out.any()
    ran = [wrapper.ran for wrapper in library.decode if wrapper.ran]
    assert ran == [[{"q_scale": 0.125}]]
    right = kernels.ops.paged_attention(q, kv, replace(meta, plan=None), 0.125)
    assert right.any()
    for other in ({"window": 4}, {"softcap": 5.0}, {"sinks": torch.zeros(8)}):
        assert kernels.ops.paged_attention(q, kv, meta, 0.125, **other).any()
    assert kernels.ops.paged_attention(q[:, :4], kv, meta, 0.125).any()  # of another number of heads
    assert ran == [[{"q_scale": 0.125}]]


def test_inputs_on_the_card_keep_the_plan_they_have(kernels: FlashInferKernels) -> None:
    kernels.allocate_kv(LAYOUT, 20, torch.device("cpu"))
    planned = kernels.plan(inputs([(17, 1)]))
    staged = replace(planned, attention=replace(planned.attention, block_tables=torch.zeros(1, 4, dtype=torch.int32)))
    assert kernels.plan(staged) is staged


def test_without_the_number_of_query_heads_nothing_is_planned(kernels: FlashInferKernels) -> None:
    kernels.allocate_kv(replace(LAYOUT, query_heads=0), 20, torch.device("cpu"))
    step = inputs([(17, 1)])
    assert kernels.plan(step) is step


def test_it_claims_what_flashinfer_takes(kernels: FlashInferKernels) -> None:
    claimed = kernels.capabilities
    assert DType.FLOAT32 not in (*claimed.dtypes, *claimed.kv_dtypes)
    assert not claimed.graph_capture
    assert claimed.asynchronous
