"""min_p, top_k and top_p over a whole vocabulary, without sorting it.

All three keep a prefix of the tokens in order of falling probability and rising id. Probabilities are int32
in units of 2^-30 (see `octavo.sampling.sampler`), so the prefix is found by bisection on exact sums and is
exactly the shortest one.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from octavo.sampling.inputs import SamplingInputs, Truncation

Array = Any

# top_p and min_p are float32 and the probabilities carry float32's error: what comes this close to a bound
# has reached it.
_SLACK = 1.0 - 2.0**-20
_BISECTIONS = 31  # the range is 0 .. 2^30


def probability_floor(best: Array, min_p: Array) -> Array:
    """The fewest units min_p keeps. best int32 [rows], of the most likely token; min_p float32 [rows] ->
    int32 [rows].
    """
    xp = array_namespace(best)
    return xp.astype(xp.ceil(xp.astype(best, xp.float32) * (min_p * _SLACK)), xp.int32)


def probability_target(total: Array, top_p: Array) -> Array:
    """The units top_p must reach, at least 1. total int32 [rows], top_p float32 [rows] -> int32 [rows]."""
    xp = array_namespace(total)
    reach = xp.astype(xp.floor(xp.astype(total, xp.float32) * (top_p * _SLACK)), xp.int32)
    return xp.where(top_p < 1.0, xp.where(reach > 1, reach, 1), total)


def truncate(units: Array, inputs: SamplingInputs, truncation: Truncation) -> Array:
    """Zero what min_p, then top_k, then top_p exclude, as far as `truncation` says they are used; a token
    stays.

    units int32 [rows, groups, members], the token id being group * members + member -> the same shape.
    """
    xp = array_namespace(units)
    floor = probability_floor(xp.max(units, axis=(1, 2)), inputs.min_p)
    units = xp.where(units >= floor[:, None, None], units, 0)
    if truncation is Truncation.FLOOR:
        return units
    if truncation is Truncation.FULL:
        units = _shortest_prefix(units, inputs.top_k, by_count=True)
    total = xp.sum(units, axis=(1, 2), dtype=xp.int32)
    return _shortest_prefix(units, probability_target(total, inputs.top_p), by_count=False)


def _shortest_prefix(units: Array, target: Array, *, by_count: bool) -> Array:
    """Keep the shortest prefix whose number of tokens, or sum of units, is at least target int32 [rows], at
    least 1.
    """
    xp = array_namespace(units)
    flat = xp.reshape(units, (units.shape[0], -1))
    low = xp.zeros_like(target)
    high = xp.full_like(target, 1 << 30)
    for _ in range(_BISECTIONS):  # for the smallest level that too little lies above
        middle = (low + high) >> 1
        short = _above(flat, middle, by_count) < target
        low, high = xp.where(short, low, middle + 1), xp.where(short, middle, high)
    level = high
    lacking = target - _above(flat, level, by_count)
    ties = lacking if by_count else (lacking - 1) // xp.where(level > 1, level, 1) + 1
    last = _nth_equal(units, level, ties)
    ids = xp.reshape(xp.arange(flat.shape[-1], dtype=xp.int32, device=device(units)), units.shape[1:])
    among = xp.astype(ids <= last[:, None, None], xp.int32)
    return xp.where(units > level[:, None, None] - among, units, 0)


def _above(flat: Array, level: Array, by_count: bool) -> Array:
    """How many tokens, or units, lie above level int32 [rows]. flat int32 [rows, n].

    Two sums of maxima: on a CPU several times cheaper than to compare and select. They may wrap around; the
    result, at most 2^31, is right all the same.
    """
    xp = array_namespace(flat)
    here = xp.sum(xp.maximum(flat, level[:, None]), axis=-1, dtype=xp.int32)
    next_level = level + 1
    not_above = xp.sum(xp.maximum(flat, next_level[:, None]), axis=-1, dtype=xp.int32) - here
    return flat.shape[-1] - not_above if by_count else here - level * not_above


def _nth_equal(units: Array, level: Array, n: Array) -> Array:
    """The id of the n-th token with exactly `level` units; the last id where there are fewer. [rows]."""
    xp = array_namespace(units)
    rows, groups, members = units.shape
    equal = xp.astype(units == level[:, None, None], xp.int32)
    reached = xp.cumulative_sum(xp.sum(equal, axis=-1, dtype=xp.int32), axis=-1, dtype=xp.int32)  # [rows, groups]
    group = xp.sum(xp.astype(reached < n[:, None], xp.int32), axis=-1, dtype=xp.int32)
    group = xp.where(group < groups, group, groups - 1)
    row = xp.arange(rows, dtype=xp.int32, device=device(units)) * groups + group
    inside = xp.take(xp.reshape(equal, (rows * groups, members)), row, axis=0)  # [rows, members]
    left = n - xp.take(xp.reshape(reached, (-1,)), row, axis=0) + xp.sum(inside, axis=-1, dtype=xp.int32)
    before = xp.cumulative_sum(inside, axis=-1, dtype=xp.int32) < left[:, None]
    return group * members + xp.sum(xp.astype(before, xp.int32), axis=-1, dtype=xp.int32)
