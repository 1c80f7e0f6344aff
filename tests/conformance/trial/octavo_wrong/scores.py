"""Faults of `paged_attention`: heads, scores, softmax, and the shapes of a call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.backend import AttentionMetadata
from octavo_wrong.fault import Fault, in_ops
from octavo_wrong.plain import Call, PlainAttention, Scores, WrongCall, tensor_float

Array = Any


def faults() -> Iterator[Fault]:
    yield from in_ops(
        "paged_attention",
        HeadGrouping,
        FirstHeadsSwapped,
        HeadTailDropped,
        ScaleMissing,
        ScaleDoubled,
        ScaleOfHeadSize,
        SoftcapIgnored,
        SoftcapBeforeScale,
        SinksIgnored,
        SinkOfFirstHead,
        SinksScaled,
        MaximumNotSubtracted,
        MaximumNotRescaled,
        SoftmaxInLowPrecision,
        ScoresInTensorFloat,
        SplitsMergedAtRandom,
        TokensBeyondTile,
        EmptySequenceFails,
        BatchOfOneSqueezed,
        QueryScaledInPlace,
        OutputShared,
    )


class HeadGrouping(PlainAttention):
    """Query head h reads KV head h % kv_heads instead of h // (heads / kv_heads)."""

    def attend(self, q: Array, keys: Array, values: Array, seen: Array, scores: Scores) -> Array:
        # Put the heads that share a wrong KV head side by side, as the right ones are, and back again.
        order = np.argsort(np.arange(q.shape[1]) % keys.shape[1], kind="stable")
        sinks = None if scores.sinks is None else scores.sinks[order]
        mixed = super().attend(q[:, order], keys, values, seen, replace(scores, sinks=sinks))
        return mixed[:, np.argsort(order)]


class FirstHeadsSwapped(PlainAttention):
    """The results of the first two query heads change places."""

    def paged_attention(self, *arguments: Any, **named: Any) -> Array:
        right = super().paged_attention(*arguments, **named)
        order = np.arange(right.shape[1])
        order[:2] = order[:2][::-1]
        return right[:, order]


class HeadTailDropped(WrongCall):
    """Of heads of more than 128 entries only the first 128 enter the scores."""

    def wrong(self, call: Call) -> Call:
        q = call.q.copy()
        q[..., 128:] = 0
        return replace(call, q=q)


class ScaleMissing(WrongCall):
    """Scores are q.k, not q.k * scale."""

    def wrong(self, call: Call) -> Call:
        return replace(call, scale=1.0)


class ScaleDoubled(WrongCall):
    """The scale is applied twice, to q and to the scores."""

    def wrong(self, call: Call) -> Call:
        return replace(call, scale=call.scale * call.scale)


class ScaleOfHeadSize(WrongCall):
    """The scale is 1 / sqrt(head_size), whatever was asked for."""

    def wrong(self, call: Call) -> Call:
        return replace(call, scale=call.q.shape[-1] ** -0.5)


class SoftcapIgnored(WrongCall):
    """Scores are not capped."""

    def wrong(self, call: Call) -> Call:
        return replace(call, softcap=None)


class SoftcapBeforeScale(PlainAttention):
    """The cap is put on q.k, and the scale on what comes out."""

    def capped(self, products: Array, scores: Scores) -> Array:
        if scores.softcap is None:
            return super().capped(products, scores)
        return super().capped(products, replace(scores, scale=1.0)) * np.float32(scores.scale)


class SinksIgnored(WrongCall):
    """The softmax's denominator has no sink."""

    def wrong(self, call: Call) -> Call:
        return replace(call, sinks=None)


class SinkOfFirstHead(WrongCall):
    """All heads take the sink of head 0."""

    def wrong(self, call: Call) -> Call:
        return call if call.sinks is None else replace(call, sinks=np.full_like(call.sinks, call.sinks[0]))


class SinksScaled(WrongCall):
    """The sinks are multiplied by the scale, as scores are."""

    def wrong(self, call: Call) -> Call:
        return (
            call if call.sinks is None else replace(call, sinks=call.sinks * np.asarray(call.scale, call.sinks.dtype))
        )


class MaximumNotSubtracted(PlainAttention):
    """The softmax takes exp of the scores as they are, which overflows."""

    def weights(self, scores: Array, seen: Array, sinks: Array | None, dtype: np.dtype) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            odds = np.exp(scores) * seen
            total = odds.sum(axis=-1, keepdims=True)
            if sinks is not None:
                total = total + np.exp(sinks[..., None])
            return odds / np.where(total == 0, 1, total)


class MaximumNotRescaled(PlainAttention):
    """The online softmax does not rescale what it has summed when a later pass of 64 slots brings a larger score."""

    def weights(self, scores: Array, seen: Array, sinks: Array | None, dtype: np.dtype) -> Array:
        if sinks is not None:
            return super().weights(scores, seen, sinks, dtype)
        lowest = np.where(seen, scores, np.float32(-1e30))
        best = np.maximum.accumulate(lowest, axis=-1)
        step = np.minimum(np.arange(scores.shape[-1]) // 64 * 64 + 63, scores.shape[-1] - 1)
        with np.errstate(under="ignore"):
            odds = np.where(seen, np.exp(lowest - best[..., step]), np.float32(0))
        total = odds.sum(axis=-1, keepdims=True)
        return odds / np.where(total == 0, np.float32(1), total)


class SoftmaxInLowPrecision(PlainAttention):
    """The softmax's denominator is summed in the dtype of the query."""

    def weights(self, scores: Array, seen: Array, sinks: Array | None, dtype: np.dtype) -> Array:
        right = super().weights(scores, seen, sinks, dtype)
        if dtype.itemsize > 2:
            return right
        # Weights relative to the largest, as the online softmax holds them, added up one by one.
        largest = right.max(axis=-1, keepdims=True)
        odds = right / np.where(largest == 0, np.float32(1), largest)
        total = np.zeros(odds.shape[:-1], dtype)
        for slot in range(odds.shape[-1]):
            total = (total.astype(np.float32) + odds[..., slot]).astype(dtype)
        exact = odds.sum(axis=-1)
        factor = exact / np.where(total == 0, np.float32(1), total.astype(np.float32))
        return right * factor[..., None]


class ScoresInTensorFloat(WrongCall):
    """float32 queries keep 10 bits of their mantissa, as matrix units take them unasked."""

    def wrong(self, call: Call) -> Call:
        return replace(call, q=tensor_float(call.q))


class SplitsMergedAtRandom(PlainAttention):
    """The parts of a context are added up in the order in which they come in, which differs from call to call."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)  # another order in each call, the same ones in each run

    def attend(self, q: Array, keys: Array, values: Array, seen: Array, scores: Scores) -> Array:
        order = self._rng.permutation(len(keys))
        return super().attend(q, keys[order], values[order], seen[:, order], scores)


class TokensBeyondTile(PlainAttention):
    """The last tile of the grid is not started: of more than 64 tokens those beyond a multiple of 64 are left 0."""

    def paged_attention(self, q: Array, *rest: Any, **named: Any) -> Array:
        right = super().paged_attention(q, *rest, **named)
        if len(q) > 64:
            right[len(q) // 64 * 64 :] = 0
        return right


class EmptySequenceFails(PlainAttention):
    """A padding sequence of context 0 makes the kernel fail."""

    def paged_attention(self, q: Array, kv: Array, meta: AttentionMetadata, *rest: Any, **named: Any) -> Array:
        if 0 in meta.context_lengths:
            raise ZeroDivisionError("a split of an empty context")
        return super().paged_attention(q, kv, meta, *rest, **named)


class BatchOfOneSqueezed(PlainAttention):
    """The result for a single token has lost its first axis."""

    def paged_attention(self, *arguments: Any, **named: Any) -> Array:
        right = super().paged_attention(*arguments, **named)
        return right[0] if len(right) == 1 else right


class QueryScaledInPlace(WrongCall):
    """The scale is multiplied into the caller's own q."""

    def wrong(self, call: Call) -> Call:
        np.multiply(call.q, np.asarray(call.scale, call.q.dtype), out=call.q)
        return replace(call, scale=1.0)


class OutputShared(PlainAttention):
    """Results of one shape are written to one buffer, which the next call writes to again."""

    def __init__(self) -> None:
        self._buffers: dict[Any, Array] = {}

    def paged_attention(self, *arguments: Any, **named: Any) -> Array:
        right = super().paged_attention(*arguments, **named)
        buffer = self._buffers.setdefault((right.shape, right.dtype), right)
        buffer[...] = right
        return buffer
