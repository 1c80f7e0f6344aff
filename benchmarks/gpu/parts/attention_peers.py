"""Other paged attention on the same shapes: torch's FlexAttention with a paged block mask, FlashInfer where it is here.

Each is given its own cache in the layout it likes, full of random numbers, and pages in random order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch

from benchmarks.gpu.attention import decode_name, prefill_name
from benchmarks.gpu.part import AbsentError, Bench, Measurement
from benchmarks.gpu.scale import Scale

_FLEX_PAGE = 128
"""Tokens of a page: FlexAttention's block of keys, which it is fastest with."""

_WORKSPACE = 128 << 20
"""Bytes that each of FlashInfer's wrappers is given, as its documentation has it."""

_MOST_BATCHES = 16


def measurements(scale: Scale, argument: str) -> Iterator[Measurement]:
    for decode in (*scale.flex_decodes, *(one for one in scale.decodes if one not in scale.flex_decodes)):
        run = partial(_flashinfer, decode.batch, 1, decode.context)
        yield Measurement(decode_name("decode-flashinfer", decode), run, limit=90.0)
    for prefill in scale.prefills:
        run = partial(_flashinfer, prefill.batch, prefill.queries, prefill.context)
        yield Measurement(prefill_name("prefill-flashinfer", prefill), run, limit=90.0)
    for decode in scale.flex_decodes:
        run = partial(_flex, decode.batch, 1, decode.context)
        yield Measurement(decode_name("decode-flex", decode), run, limit=60.0)
    for prefill in scale.flex_prefills:
        run = partial(_flex, prefill.batch, prefill.queries, prefill.context)
        yield Measurement(prefill_name("prefill-flex", prefill), run, limit=60.0)


# --------------------------------------------------------------------------------------------------- FlexAttention


def _flex(sequences: int, queries: int, context: int, bench: Bench) -> dict[str, Any]:
    """One cache [1, kv_heads, slots, head_size] behind a page table, and a block mask in physical pages."""
    from torch.nn.attention.experimental._paged_attention import PagedAttention
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    scale, where = bench.scale, bench.torch_device
    dtype = getattr(torch, scale.dtype)
    if context % _FLEX_PAGE:
        raise AbsentError(f"A context of {context} tokens is no number of whole pages of {_FLEX_PAGE}.")
    pages = sequences * context // _FLEX_PAGE
    paged = PagedAttention(pages, _FLEX_PAGE, sequences, device=str(where))
    paged.empty_pages = torch.randperm(pages).tolist()
    for sequence in range(sequences):
        paged.reserve(torch.tensor(sequence, device=where), torch.tensor(context, device=where))
    ahead = context - queries

    def causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return key <= query + ahead

    logical = create_block_mask(causal, sequences, None, queries, context, device=where, BLOCK_SIZE=_FLEX_PAGE)
    mask = paged.convert_logical_block_mask(logical)
    shape = (1, scale.kv_heads, pages * _FLEX_PAGE, scale.head_size)
    keys, values = (torch.randn(shape, device=where, dtype=dtype) for _ in range(2))
    q = torch.randn(sequences, scale.heads, queries, scale.head_size, device=where, dtype=dtype)
    # On a host, where only the path is tried, without the minutes a compiler takes.
    attend = flex_attention if scale.dry else torch.compile(flex_attention, dynamic=False)
    timing = bench.clock.time([lambda: attend(q, keys, values, block_mask=mask, enable_gqa=True)])
    return {**_figures(bench, timing, sequences, queries, context), "page_size": _FLEX_PAGE}


# ------------------------------------------------------------------------------------------------------ FlashInfer


def _flashinfer(sequences: int, queries: int, context: int, bench: Bench) -> dict[str, Any]:
    """Its wrappers for a paged cache [pages, 2, page_size, kv_heads, head_size]; planning is not timed."""
    try:
        flashinfer = import_module("flashinfer")
    except ImportError as error:
        raise AbsentError(f"FlashInfer is not installed here: {error}.") from None
    scale, where = bench.scale, bench.torch_device
    dtype = getattr(torch, scale.dtype)
    page_size = bench.device.info.capabilities.block_sizes[0]
    width = -(-context // page_size)
    shape = (sequences * width, 2, page_size, scale.kv_heads, scale.head_size)
    one = 2 * sequences * context * scale.kv_heads * scale.head_size * dtype.itemsize
    batches = max(1, min(_MOST_BATCHES, -(-scale.rotated_bytes // one)))
    if batches * (one + _WORKSPACE) > 0.8 * bench.device.memory().free:
        raise AbsentError(f"Keys and values of {batches * one:,} bytes do not fit.")
    q = torch.randn(sequences * queries, scale.heads, scale.head_size, device=where, dtype=dtype)
    indptr = torch.arange(sequences + 1, dtype=torch.int32, device=where) * width
    last = torch.full((sequences,), context - (width - 1) * page_size, dtype=torch.int32, device=where)
    calls = []
    for _ in range(batches):
        cache = torch.randn(shape, device=where, dtype=dtype)
        pages = torch.randperm(sequences * width, device=where).int()
        workspace = torch.zeros(_WORKSPACE, dtype=torch.uint8, device=where)
        if queries == 1:
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
            heads = (scale.heads, scale.kv_heads, scale.head_size, page_size)
            wrapper.plan(indptr, pages, last, *heads, q_data_type=dtype, kv_data_type=dtype)
        else:
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
            starts = torch.arange(sequences + 1, dtype=torch.int32, device=where) * queries
            heads = (scale.heads, scale.kv_heads, scale.head_size, page_size)
            wrapper.plan(starts, indptr, pages, last, *heads, causal=True, q_data_type=dtype, kv_data_type=dtype)
        calls.append(partial(wrapper.run, q, cache))
    return _figures(bench, bench.clock.time(calls), sequences, queries, context)


def _figures(bench: Bench, timing: Any, sequences: int, queries: int, context: int) -> dict[str, Any]:
    scale = bench.scale
    itemsize = getattr(torch, scale.dtype).itemsize
    kv = 2 * sequences * context * scale.kv_heads * scale.head_size
    both_ways = 2 * sequences * queries * scale.heads * scale.head_size
    pairs = queries * (2 * context - queries + 1) // 2 * sequences
    figures: dict[str, Any] = timing.figures((kv + both_ways) * itemsize, 4 * scale.heads * scale.head_size * pairs)
    return figures
