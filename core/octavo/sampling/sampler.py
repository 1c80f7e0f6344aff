"""The sampler: from logits to token ids, as pure functions on the array-API standard plus three operations of the
contract: `Ops.probability_units`, `top_k` and `scatter_add`.

Order, as in vLLM: mask, logit bias, penalties -> temperature -> min_p -> top_k -> top_p -> draw.

Probabilities become integers, in units of 2^-30, before anything is summed or compared. Integer sums are
exact in every order, so a row's draw depends on that row alone: not on its batch, on the features its
neighbours switch on, or on how a device reduces. The order of tokens is everywhere the same: falling
probability, then rising id.

A draw is a race in two heats, each the Gumbel-max trick in the linear domain (see `random.exponential`): the
vocabulary is cut into groups of 128 ids; the groups race with their total probability, then the winner's
members with their own. The product of the two is the softmax, exactly, and 1 / 128 of the noise is needed. A
group's noise is keyed by a negative id.

The same logits give the same draw on every library, but for the last bits of `exp` and `log1p`: about 1e-7 of
a weight, and a draw changes only where the two best contenders are that close, once in some millions of
draws. NumPy against PyTorch differed in none of 262,144 (2,048 ids; softmax from flat to sharp).
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace, device

from octavo.backend.ops import Ops
from octavo.sampling.inputs import (
    CANDIDATES,
    MASKED,
    SamplerFeatures,
    SamplerOutputs,
    SamplingInputs,
    Truncation,
)
from octavo.sampling.random import exponential
from octavo.sampling.truncation import probability_floor, probability_target, truncate

Array = Any

GROUP = 128


def sample(ops: Ops, logits: Array, inputs: SamplingInputs, features: SamplerFeatures) -> SamplerOutputs:
    """Choose a token for each row.

    logits float32 [rows, vocabulary], finite. Rows of temperature 0 take the largest logit, the lowest id
    among equals.
    """
    xp = array_namespace(logits)
    grouped = _in_groups(edited_logits(ops, logits, inputs, features))  # [rows, groups, GROUP]
    group, member = _largest(grouped)
    token_ids = group * GROUP + member
    if features.random:
        token_ids = xp.where(inputs.temperatures > 0.0, _draw(ops, grouped, inputs, features), token_ids)
    if features.logprobs is None:
        return SamplerOutputs(token_ids)
    reported = xp.where(inputs.targets >= 0, inputs.targets, token_ids)
    return _with_logprobs(ops, logits, token_ids, reported, features.logprobs)


# ----------------------------------------------------------------------------------------------------- logits


def edited_logits(ops: Ops, logits: Array, inputs: SamplingInputs, features: SamplerFeatures) -> Array:
    """The logits after mask, bias and penalties; float32 [rows, vocabulary]. `SamplingInputs` says how."""
    xp = array_namespace(logits)
    if features.mask:
        ids = _range(logits, logits.shape[-1])
        words = xp.take(inputs.mask_bits, ids >> 5, axis=1)
        logits = xp.where(((words >> (ids & 31)) & 1) == 1, logits, MASKED)
    if features.edits:
        old = _pick(logits, inputs.edit_ids)
        new = old + inputs.edit_bias
        factor = inputs.edit_repetition
        new = xp.where(new > 0.0, new / factor, new * factor) + inputs.edit_penalty
        logits = ops.scatter_add(logits, inputs.edit_ids, new - old)
    return logits


def _in_groups(logits: Array) -> Array:
    xp = array_namespace(logits)
    rows, vocabulary = logits.shape
    if missing := -vocabulary % GROUP:
        padding = xp.full((rows, missing), -math.inf, dtype=xp.float32, device=device(logits))
        logits = xp.concat([logits, padding], axis=-1)
    return xp.reshape(logits, (rows, -1, GROUP))


def _largest(grouped: Array) -> tuple[Array, Array]:
    """Group and member of each row's largest logit. A maximum by group is much cheaper than a long argmax."""
    xp = array_namespace(grouped)
    group = _argmax(xp.max(grouped, axis=-1))
    return group, _argmax(_members(grouped, group))


# ------------------------------------------------------------------------------------------------------- draw


def _draw(ops: Ops, grouped: Array, inputs: SamplingInputs, features: SamplerFeatures) -> Array:
    xp = array_namespace(grouped)
    temperatures = xp.where(inputs.temperatures > 0.0, inputs.temperatures, 1.0)
    units = ops.probability_units(xp.reshape(grouped, (grouped.shape[0], -1)), temperatures)
    if features.truncation is Truncation.CANDIDATES:
        return _draw_candidate(ops, units, inputs)
    units = xp.reshape(units, grouped.shape)
    if features.truncation is not Truncation.NONE:
        units = truncate(units, inputs, features.truncation)
    return _draw_any(units, inputs)


def _draw_any(units: Array, inputs: SamplingInputs) -> Array:
    """Draw in proportion to units int32 [rows, groups, GROUP] -> token ids int32 [rows]."""
    xp = array_namespace(units)
    group_ids = _range(units, units.shape[1])
    group_units = xp.sum(units, axis=-1, dtype=xp.int32)  # [rows, groups]
    group = _argmax(_race(group_units, -1 - group_ids, inputs))
    ids = group[:, None] * GROUP + _range(units, GROUP)
    return group * GROUP + _argmax(_race(_members(units, group), ids, inputs))


def _draw_candidate(ops: Ops, units: Array, inputs: SamplingInputs) -> Array:
    """The draw of `_draw_any` after truncation, where the best tokens of each row are all it can come from.

    units int32 [rows, groups * GROUP].
    """
    xp = array_namespace(units)
    # Not a bit is lost: float32 holds every unit, see `Ops.probability_units`. top_k takes floats alone.
    best, ids = ops.top_k(xp.astype(units, xp.float32), min(CANDIDATES, units.shape[-1]))
    units = xp.astype(best, xp.int32)  # [rows, candidates], in the order of tokens
    kept = _range(units, units.shape[-1]) < inputs.top_k[:, None]
    kept = kept & (units >= probability_floor(units[:, 0], inputs.min_p)[:, None])
    units = xp.where(kept, units, 0)
    above = xp.cumulative_sum(units, axis=-1, dtype=xp.int32) - units
    target = probability_target(xp.sum(units, axis=-1, dtype=xp.int32), inputs.top_p)
    units = xp.where(above < target[:, None], units, 0)

    groups = ids // GROUP
    same_group = groups[:, :, None] == groups[:, None, :]
    group_units = xp.sum(xp.where(same_group, units[:, None, :], 0), axis=-1, dtype=xp.int32)
    group = _lowest_of_best(_race(group_units, -1 - groups, inputs), groups)
    units = xp.where(groups == group[:, None], units, 0)
    return _lowest_of_best(_race(units, ids, inputs), ids)


def _race(units: Array, ids: Array, inputs: SamplingInputs) -> Array:
    xp = array_namespace(units)
    return xp.astype(units, xp.float32) / exponential(inputs.seeds, inputs.positions, ids)


def _lowest_of_best(scores: Array, ids: Array) -> Array:
    xp = array_namespace(scores)
    best = scores == xp.max(scores, axis=-1, keepdims=True)
    return xp.min(xp.where(best, ids, (1 << 31) - 1), axis=-1)


# --------------------------------------------------------------------------------------------------- logprobs


def _with_logprobs(ops: Ops, logits: Array, token_ids: Array, reported: Array, count: int) -> SamplerOutputs:
    xp = array_namespace(logits)
    peak = xp.max(logits, axis=-1, keepdims=True)
    normaliser = peak + xp.log(xp.sum(xp.exp(logits - peak), axis=-1, keepdims=True))  # [rows, 1]
    chosen = _pick(logits, reported[:, None])
    ranks = 1 + xp.sum(xp.astype(logits > chosen, xp.int32), axis=-1, dtype=xp.int32)
    logprobs = (chosen - normaliser)[:, 0]
    if count == 0:
        return SamplerOutputs(token_ids, logprobs, ranks)
    top, top_ids = ops.top_k(logits, min(count, logits.shape[-1]))
    return SamplerOutputs(token_ids, logprobs, ranks, top_ids, top - normaliser)


# ---------------------------------------------------------------------------------------------------- helpers


def _argmax(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.astype(xp.argmax(x, axis=-1), xp.int32)


def _members(grouped: Array, group: Array) -> Array:
    """The rows of one group each: [rows, groups, GROUP], int32 [rows] -> [rows, GROUP]."""
    xp = array_namespace(grouped)
    rows, groups, _ = grouped.shape
    return xp.take(xp.reshape(grouped, (rows * groups, GROUP)), _range(group, rows) * groups + group, axis=0)


def _pick(x: Array, ids: Array) -> Array:
    """x [rows, n], ids int32 [rows, e] -> [rows, e]. Not take_along_axis: PyTorch's takes int64 ids only."""
    xp = array_namespace(x)
    rows, width = x.shape
    flat = _range(ids, rows)[:, None] * width + ids
    return xp.reshape(xp.take(xp.reshape(x, (-1,)), xp.reshape(flat, (-1,)), axis=0), ids.shape)


def _range(like: Array, stop: int) -> Array:
    xp = array_namespace(like)
    return xp.arange(stop, dtype=xp.int32, device=device(like))
