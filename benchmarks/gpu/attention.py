"""Paged attention of the backend, decode and prefill, beside torch's SDPA on keys that were gathered beforehand.

Decode is held against the copy bandwidth, prefill against the matrix rate. SDPA has the easier task: its keys and
values lie contiguously, sequence by sequence, and the time to gather them is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from benchmarks.gpu.paged_batch import make_batches
from benchmarks.gpu.part import AbsentError, Bench, Measurement
from benchmarks.gpu.scale import Decode, Prefill, Scale


def measurements(scale: Scale) -> Iterator[Measurement]:
    for decode in scale.decodes:
        yield Measurement(decode_name("decode", decode), partial(_decode, decode))
        yield Measurement(decode_name("decode-sdpa", decode), partial(_sdpa_decode, decode))
    for prefill in scale.prefills:
        yield Measurement(prefill_name("prefill", prefill), partial(_prefill, prefill))
        yield Measurement(prefill_name("prefill-sdpa", prefill), partial(_sdpa_prefill, prefill))


def decode_name(subject: str, decode: Decode) -> str:
    return f"{subject}/batch={decode.batch},context={decode.context}"


def prefill_name(subject: str, prefill: Prefill) -> str:
    return f"{subject}/batch={prefill.batch},queries={prefill.queries},context={prefill.context}"


def _decode(decode: Decode, bench: Bench) -> dict[str, Any]:
    return _paged(bench, decode.batch, 1, decode.context)


def _prefill(prefill: Prefill, bench: Bench) -> dict[str, Any]:
    return _paged(bench, prefill.batch, prefill.queries, prefill.context)


def _paged(bench: Bench, sequences: int, queries: int, context: int) -> dict[str, Any]:
    work, attend = make_batches(bench, sequences, queries, context), bench.device.ops.paged_attention
    calls = [
        partial(attend, q, work.kv, meta, work.scale)  # one layer
        for q, meta in zip(work.q, work.metas, strict=True)
    ]
    figures: dict[str, Any] = bench.clock.time(calls).figures(work.moved, work.flops)
    return figures


def _sdpa_decode(decode: Decode, bench: Bench) -> dict[str, Any]:
    return _sdpa(bench, decode.batch, 1, decode.context)


def _sdpa_prefill(prefill: Prefill, bench: Bench) -> dict[str, Any]:
    return _sdpa(bench, prefill.batch, prefill.queries, prefill.context)


def _sdpa(bench: Bench, sequences: int, queries: int, context: int) -> dict[str, Any]:
    scale, where = bench.scale, bench.torch_device
    dtype = getattr(torch, scale.dtype)
    one = 2 * sequences * context * scale.kv_heads * scale.head_size * dtype.itemsize
    batches = max(1, min(64, -(-scale.rotated_bytes // one)))
    if batches * one > 0.8 * bench.device.memory().free:
        raise AbsentError(f"Keys and values of {batches * one:,} bytes do not fit.")
    shape = (sequences, scale.kv_heads, context, scale.head_size)
    keys, values = ([torch.randn(shape, device=where, dtype=dtype) for _ in range(batches)] for _ in range(2))
    q = torch.randn(sequences, scale.heads, queries, scale.head_size, device=where, dtype=dtype)
    masked: dict[str, Any] = {"is_causal": True} if queries == context else {}
    if 1 < queries < context:
        masked = {"attn_mask": causal_lower_right(queries, context)}
    attend = partial(functional.scaled_dot_product_attention, q, enable_gqa=True, **masked)
    timing = bench.clock.time([partial(attend, k, v) for k, v in zip(keys, values, strict=True)])
    pairs = queries * (2 * context - queries + 1) // 2 * sequences
    figures: dict[str, Any] = timing.figures(
        one + 2 * q.numel() * q.element_size(), 4 * scale.heads * scale.head_size * pairs
    )
    return figures
