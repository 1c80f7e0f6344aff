"""What paged attention has to do at the least."""

from __future__ import annotations

from collections.abc import Sequence

from octavo_torch.kernels.kernel import Cost


def cost(
    queries: Sequence[int],
    contexts: Sequence[int],
    heads: int,
    kv_heads: int,
    head_size: int,
    itemsize: int,
    kv_itemsize: int,
    window: int | None = None,
    scaled: bool = False,
) -> Cost:
    """Of one call. queries, contexts: tokens of each sequence in this step and in its cache, as `AttentionMetadata`.

    Keys and values that some query sees are read once; itemsize is that of queries and results. scaled: the cache has
    a float32 scale for each slot and head. flops: of the two products, over the keys that each query sees.
    """
    tokens, slots, pairs = 0, 0, 0
    for count, context in zip(queries, contexts, strict=True):
        tokens += count
        slots += context if window is None else min(context, count + window - 1)
        pairs += _pairs(count, context, window)
    entry = head_size * kv_itemsize + (4 if scaled else 0)
    rows = tokens * heads * head_size * itemsize
    return Cost(read=rows + 2 * slots * kv_heads * entry, written=rows, flops=4 * pairs * heads * head_size)


def _pairs(count: int, context: int, window: int | None) -> int:
    """Queries and the keys that they see: min(position + 1, window) for each of the last `count` positions."""
    before = context - count
    if window is None or window >= context:
        return count * before + count * (count + 1) // 2
    short = max(0, min(count, window - before))  # queries that see less than a window
    return short * before + short * (short + 1) // 2 + (count - short) * window
