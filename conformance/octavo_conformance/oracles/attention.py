"""Causal attention of one sequence in float64, over keys and values that lie in a row: no pages, no passes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
AnyArray = NDArray[Any]


def attention(
    q: AnyArray,
    k: AnyArray,
    v: AnyArray,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: AnyArray | None = None,
) -> Float64Array:
    """Vaswani et al. 2017 with grouped heads (Ainslie et al. 2023), soft-capped scores (Gemma 2), attention sinks
    (gpt-oss).

    q [queries, heads, head_size] of the sequence's last positions, k and v [context, kv_heads, head_size] of all,
    sinks [heads] -> [queries, heads, head_size]. A query at position p sees positions p - window + 1 .. p; what
    stands elsewhere in k and v, NaN included, does not matter.
    """
    queries, heads, _ = q.shape
    context, kv_heads, _ = k.shape
    at = np.arange(context - queries, context)[:, None]
    key = np.arange(context)[None, :]
    seen: NDArray[np.bool_] = key <= at  # [queries, context]
    if window is not None:
        seen &= key > at - window
    attended = np.any(seen, axis=0, keepdims=True).reshape(context, 1, 1)
    keys, values = (np.where(attended, side, 0).astype(np.float64) for side in (k, v))
    result = np.empty(q.shape, np.float64)
    for head in range(heads):
        group = head // (heads // kv_heads)
        scores = q[:, head].astype(np.float64) @ keys[:, group].T * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        scores = np.where(seen, scores, -np.inf)
        highest = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - highest)
        total = weights.sum(axis=-1, keepdims=True)
        if sinks is not None:
            # exp of a sink far above the scores overflows to inf, and the result is then the 0 that it should be.
            with np.errstate(over="ignore"):
                total = total + np.exp(float(sinks[head]) - highest)
        result[:, head] = weights @ values[:, group] / total
    return result
