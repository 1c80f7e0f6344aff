"""Attention sequence by sequence, in parts that a fault can replace one of. As it stands it is right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.backend import AttentionMetadata, Ops

Array = Any


@dataclass(frozen=True)
class Scores:
    """How scores are made; sinks [heads] or None."""

    scale: float
    softcap: float | None
    sinks: Array | None


def tensor_float(x: Array) -> Array:
    """float32 numbers cut to the 10 bits of mantissa that matrix units take; other dtypes as they are."""
    if x.dtype != np.float32:
        return x
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def from_first(x: Array) -> Array:
    """What a kernel reads that takes a view for an array of its own: as many entries from the view's first one on."""
    if x.flags.c_contiguous or x.base is None:
        return x
    base = x.base.reshape(-1).view(x.dtype)
    start = (x.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // x.itemsize
    return np.resize(base[start : start + x.size], x.shape)


class PlainAttention(Ops):
    """Nothing; it is the control."""

    def paged_attention(
        self,
        q: Array,
        kv: Array,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        result = np.zeros(q.shape, q.dtype)
        starts = meta.query_starts
        for sequence, length in enumerate(meta.context_lengths.tolist()):
            rows = slice(int(starts[sequence]), int(starts[sequence + 1]))
            if rows.start == rows.stop:
                continue
            keys, values = self.gather(kv, meta.block_tables[sequence])  # [slots, kv_heads, head_size]
            at = np.arange(len(keys))
            seen = self.seen(at, meta.positions[rows], length, window)  # [queries, slots]
            result[rows] = self.attend(q[rows], keys, values, seen, Scores(scale, softcap, sinks))
        return result

    def gather(self, kv: Array, table: Array) -> tuple[Array, Array]:
        """Keys and values of whole blocks."""
        shape = (-1, *kv.shape[3:])
        return kv[0][table].reshape(shape), kv[1][table].reshape(shape)

    def seen(self, at: Array, positions: Array, length: int, window: int | None) -> Array:
        """Which slots `at` each query sees."""
        right = (at <= positions[:, None]) & (at < length)
        return right if window is None else right & (at > positions[:, None] - window)

    def attend(self, q: Array, keys: Array, values: Array, seen: Array, scores: Scores) -> Array:
        """The result rows of one sequence, in float32."""
        some = seen.any(axis=0)[:, None, None]
        keys = np.where(some, keys.astype(np.float32), np.float32(0))
        values = self.values(values.astype(np.float32), some)
        queries, heads, size = q.shape
        kv_heads = keys.shape[1]
        grouped = q.astype(np.float32).reshape(queries, kv_heads, heads // kv_heads, size).transpose(1, 2, 0, 3)
        products = grouped @ keys.transpose(1, 2, 0)[:, None]  # [kv_heads, group, queries, slots]
        sinks = None if scores.sinks is None else scores.sinks.astype(np.float32).reshape(kv_heads, -1, 1)
        weights = self.weights(self.capped(products, scores), seen, sinks, q.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            output = weights @ values.transpose(1, 0, 2)[:, None]  # [kv_heads, group, queries, size]
        return output.transpose(2, 0, 1, 3).reshape(q.shape)

    def values(self, values: Array, seen: Array) -> Array:
        """The values, those of slots that no query sees replaced: 0 * NaN is NaN."""
        return np.where(seen, values, np.float32(0))

    def capped(self, products: Array, scores: Scores) -> Array:
        """From products q.k to scores."""
        scaled = products * np.float32(scores.scale)
        return scaled if scores.softcap is None else np.float32(scores.softcap) * np.tanh(scaled / scores.softcap)

    def weights(self, scores: Array, seen: Array, sinks: Array | None, dtype: np.dtype) -> Array:
        """The softmax over the slots that are seen, and a sink [kv_heads, group, 1] where there is one."""
        masked = np.where(seen, scores, np.float32(-1e30))
        best = masked.max(axis=-1, keepdims=True)
        if sinks is not None:
            best = np.maximum(best, sinks[..., None])
        odds = np.where(seen, np.exp(masked - best), np.float32(0))
        total = odds.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks[..., None] - best)
        return odds / np.where(total == 0, np.float32(1), total)


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    q: Array  # [tokens, heads, head_size]
    kv: Array
    meta: AttentionMetadata
    scale: float
    window: int | None
    softcap: float | None
    sinks: Array | None

    def with_meta(self, **changes: Array) -> Call:
        return replace(self, meta=replace(self.meta, **changes))


class WrongCall(PlainAttention):
    """The right attention, of the wrong arguments."""

    def paged_attention(
        self,
        q: Array,
        kv: Array,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        call = self.wrong(Call(q, kv, meta, scale, window, softcap, sinks))
        return super().paged_attention(call.q, call.kv, call.meta, call.scale, call.window, call.softcap, call.sinks)

    def wrong(self, call: Call) -> Call:
        raise NotImplementedError
