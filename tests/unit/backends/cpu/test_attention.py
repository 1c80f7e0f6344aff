"""Paged attention and the writes it reads, against a float64 oracle in NumPy that knows nothing of pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from octavo.backend import AttentionMetadata, Device, DType, KVLayout

FLOAT32_ERROR, BFLOAT16_ERROR = 3e-5, 2e-2  # largest absolute error; values are of the order of 1


@dataclass
class Batch:
    """Sequences of a step: (context length, queries of this step), the context including the queries."""

    sequences: list[tuple[int, int]]
    heads: int = 6
    kv_heads: int = 2
    head_size: int = 64
    block_size: int = 16
    dtype: DType = DType.FLOAT32
    kv_dtype: DType = DType.FLOAT32
    options: dict[str, Any] = field(default_factory=dict)
    with_sinks: bool = False


def run(device: Device, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The device's output and the oracle's, both float64 [tokens, heads, head_size]."""
    rng = np.random.default_rng(0)
    size, block_size = batch.head_size, batch.block_size
    widths = [-(-context // block_size) for context, _ in batch.sequences]
    total = sum(widths) + 3
    layout = KVLayout(1, batch.kv_heads, size, block_size, batch.kv_dtype)
    kv = device.allocate_kv(layout, total)
    poison(kv[0])
    order = rng.permutation(np.arange(1, total)).astype(np.int32)
    tables = np.zeros((len(batch.sequences), max(widths)), np.int32)
    used = 0
    for row, width in enumerate(widths):
        tables[row, :width] = order[used : used + width]
        used += width

    round_to = batch.kv_dtype.numpy
    queries, expected = [], []
    sinks = rng.standard_normal(batch.heads).astype(np.float32) if batch.with_sinks else None
    scale = size**-0.5
    for row, (context, count) in enumerate(batch.sequences):
        data = np.random.default_rng(row)  # a sequence has the same contents in every batch
        q, k, v = (
            data.standard_normal((tokens, heads, size), np.float32).astype(batch.dtype.numpy)
            for tokens, heads in ((count, batch.heads), (context, batch.kv_heads), (context, batch.kv_heads))
        )
        q *= np.array(2, batch.dtype.numpy)
        at = np.arange(context)
        slots = (tables[row, at // block_size] * block_size + at % block_size).astype(np.int32)
        window = batch.options.get("window")
        if window is not None:  # what no query can see is left poisoned, as if its blocks were freed
            keep = at > context - count - window
            slots, kept_k, kept_v = slots[keep], k[keep], v[keep]
        else:
            kept_k, kept_v = k, v
        kv[0] = device.ops.write_kv(kv[0], *map(device.upload, (kept_k, kept_v, slots)))
        queries.append(q)
        wide = (x.astype(round_to).astype(np.float64) for x in (k, v))
        expected.append(oracle(q.astype(np.float64), *wide, scale, sinks=sinks, **batch.options))

    counts = [count for _, count in batch.sequences]
    contexts = [context for context, _ in batch.sequences]
    positions = np.concatenate([np.arange(c - n, c) for c, n in batch.sequences]).astype(np.int32)
    meta = AttentionMetadata(
        positions=device.upload(positions),
        slots=device.upload(np.zeros(sum(counts), np.int32)),
        sequences=device.upload(np.repeat(np.arange(len(counts)), counts).astype(np.int32)),
        query_starts=device.upload(np.cumsum([0, *counts]).astype(np.int32)),
        context_lengths=device.upload(np.array(contexts, np.int32)),
        block_tables=device.upload(tables),
        decode_only=max(counts) == 1,
    )
    out = device.ops.paged_attention(
        device.upload(np.concatenate(queries)),
        kv[0],
        meta,
        scale,
        sinks=None if sinks is None else device.upload(sinks),
        **batch.options,
    )
    return device.download(out).astype(np.float64), np.concatenate(expected)


def poison(layer: Any) -> None:
    memory = getattr(layer, "memory", layer)
    memory.fill_(float("nan"))


def oracle(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """q [queries, heads, size], k, v [context, kv_heads, size], float64 -> like q."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    at, key = np.arange(len(k) - len(q), len(k))[:, None], np.arange(len(k))[None, :]
    seen = (key <= at) & (key > at - (window or len(k)))
    scores = np.where(seen, scores, -np.inf)
    if sinks is not None:
        extra = np.broadcast_to(sinks.astype(np.float64)[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, extra], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights[..., : len(k)], v)


def check(device: Device, batch: Batch) -> None:
    got, expected = run(device, batch)
    error = BFLOAT16_ERROR if batch.dtype is DType.BFLOAT16 else FLOAT32_ERROR
    np.testing.assert_allclose(got, expected, rtol=0, atol=error)


BORDERS = [(1, 1), (15, 1), (16, 1), (17, 1), (127, 1), (128, 1), (129, 1), (256, 1), (257, 1), (600, 1)]
PREFILLS = [(1, 1), (5, 5), (40, 40), (33, 16), (130, 47), (300, 31)]
MIXED = [(70, 1), (513, 1), (90, 9), (129, 129)]


@pytest.mark.parametrize("kv_dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("sequences", [BORDERS, PREFILLS, MIXED], ids=["decode", "prefill", "mixed"])
def test_attention_equals_the_oracle(device: Device, sequences: list[tuple[int, int]], kv_dtype: DType) -> None:
    check(device, Batch(sequences, kv_dtype=kv_dtype))


@pytest.mark.parametrize("head_size", [8, 24, 64, 80, 128, 256, 20, 264])
def test_any_head_size(device: Device, head_size: int) -> None:
    check(device, Batch(MIXED, head_size=head_size))


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (9, 3), (8, 1), (32, 1), (14, 2)])
def test_any_ratio_of_query_heads_to_kv_heads(device: Device, heads: int, kv_heads: int) -> None:
    check(device, Batch(MIXED, heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize("block_size", [1, 2, 4, 8, 32, 64, 128])
def test_any_block_size(device: Device, block_size: int) -> None:
    check(device, Batch(MIXED, block_size=block_size))


@pytest.mark.parametrize("window", [1, 16, 50, 1000])
def test_a_window_sees_its_last_tokens_and_never_reads_freed_blocks(device: Device, window: int) -> None:
    check(device, Batch(MIXED, options={"window": window}))


def test_softcap(device: Device) -> None:
    check(device, Batch(MIXED, options={"softcap": 1.5}))


def test_sinks_take_probability_and_bring_no_value(device: Device) -> None:
    check(device, Batch(MIXED, with_sinks=True))


def test_window_softcap_and_sinks_together(device: Device) -> None:
    check(device, Batch(MIXED, with_sinks=True, options={"softcap": 5.0, "window": 37}))


@pytest.mark.parametrize("kv_dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_bfloat16_activations(device: Device, kv_dtype: DType) -> None:
    check(device, Batch(MIXED, dtype=DType.BFLOAT16, kv_dtype=kv_dtype))


def test_a_sequence_gets_the_same_bits_alone_and_in_a_batch(device: Device) -> None:
    if device.info.kernel == "torch":
        pytest.skip("torch's products choose their order by shape")
    alone, _ = run(device, Batch([(600, 1)]))
    together, _ = run(device, Batch([(600, 1), (33, 16), (17, 1), (900, 1)]))
    np.testing.assert_array_equal(alone[0], together[0])
