"""The operations of `Ops` on the Python array-API standard: the definition that every backend is held to.

Written to be read, not to be fast. They run on any library with the standard's functions (NumPy, PyTorch, JAX under
jit: shapes never depend on values), with three exceptions that write in place and that a library without in-place
writes overrides: `write_kv`, `copy_blocks` and `scatter_add`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace, device

from octavo.backend.kv import KVCache, LayerKV
from octavo.backend.step import AttentionMetadata
from octavo.backend.weights import (
    Activation,
    Array,
    DenseWeight,
    ExpertWeights,
    LoRABank,
    QuantizedWeight,
    RotaryTable,
    Weight,
)

if TYPE_CHECKING:
    from octavo.backend.ops import Ops

KEYS_PER_PASS = 256
"""Cache slots that `paged_attention` looks at in one pass of its online softmax ..."""

TOKENS_PER_PASS = 256
"""... and tokens at a time. Both bound its temporary memory; neither depends on the batch, so no result does."""

_UNITS = 1 << 30  # of `probability_units`: the probability 1
_GROUP = 128  # entries that it adds up before it adds up groups


# ---------------------------------------------------------------------------------------------- embedding, linear


def embedding(ids: Array, weight: Weight) -> Array:
    xp = array_namespace(ids)
    if isinstance(weight, QuantizedWeight):
        rows = QuantizedWeight(
            codes=xp.take(weight.codes, ids, axis=0),
            scales=xp.take(weight.scales, ids, axis=0),
            offsets=None if weight.offsets is None else xp.take(weight.offsets, ids, axis=0),
            bits=weight.bits,
            group_size=weight.group_size,
            codebook=weight.codebook,
        )
        matrix = dequantize(rows)
        if weight.permutation is not None:
            matrix = xp.take(matrix, xp.astype(xp.argsort(weight.permutation), xp.int32), axis=1)
        return xp.astype(matrix, weight.scales.dtype)
    return xp.take(_dense(weight).array, ids, axis=0)


def linear(x: Array, weight: Weight) -> Array:
    xp = array_namespace(x)
    if isinstance(weight, QuantizedWeight):
        matrix = dequantize(weight)
        if weight.permutation is not None:
            x = xp.take(x, weight.permutation, axis=-1)
    else:
        matrix = _dense(weight).array
    y = _float32(x) @ xp.matrix_transpose(_float32(matrix))
    if weight.bias is not None:
        y = y + _float32(weight.bias)
    return xp.astype(y, x.dtype)


def dequantize(weight: QuantizedWeight) -> Array:
    """The matrix that a quantized weight stands for, float32 [..., out, in], its columns as stored (not permuted)."""
    xp = array_namespace(weight.codes)
    codes = weight.codes
    if weight.bits == 4:
        packed = xp.astype(codes, xp.int32)
        pairs = xp.stack([packed & 15, packed >> 4], axis=-1)
        codes = xp.reshape(pairs, (*codes.shape[:-1], 2 * codes.shape[-1]))
    if weight.codebook is not None:
        flat = xp.take(_float32(weight.codebook), xp.reshape(xp.astype(codes, xp.int32), (-1,)), axis=0)
        values = xp.reshape(flat, codes.shape)
    else:
        values = _float32(codes)
    groups = (*values.shape[:-1], values.shape[-1] // weight.group_size, weight.group_size)
    matrix = xp.reshape(values, groups) * _float32(weight.scales)[..., None]
    if weight.offsets is not None:
        matrix = matrix + _float32(weight.offsets)[..., None]
    return xp.reshape(matrix, values.shape)


# --------------------------------------------------------------------------------------- norm, rotary, activation


def rms_norm(x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
    xp = array_namespace(x)
    total = x if residual is None else x + residual
    wide = _float32(total)
    normed = wide / xp.sqrt(xp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return xp.astype(normed * _float32(weight), x.dtype), total


def rotary(x: Array, positions: Array, table: RotaryTable) -> Array:
    """One of q and k; see `Ops.rotary`."""
    xp = array_namespace(x)
    size = table.cos_sin.shape[-1]
    rows = xp.take(table.cos_sin, positions, axis=0)[:, None, :]  # [tokens, 1, rotary_size]
    cos, sin = rows[..., : size // 2], rows[..., size // 2 :]
    turned, rest = _float32(x[..., :size]), x[..., size:]
    if table.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., : size // 2], turned[..., size // 2 :]
    first, second = first * cos - second * sin, second * cos + first * sin
    if table.interleaved:
        turned = xp.reshape(xp.stack([first, second], axis=-1), turned.shape)
    else:
        turned = xp.concat([first, second], axis=-1)
    turned = xp.astype(turned, x.dtype)
    return turned if rest.shape[-1] == 0 else xp.concat([turned, rest], axis=-1)


def gated_activation(x: Array, kind: Activation) -> Array:
    xp = array_namespace(x)
    half = x.shape[-1] // 2
    gate, up = _float32(x[..., :half]), _float32(x[..., half:])
    return xp.astype(_activate(gate, kind) * up, x.dtype)


def _activate(x: Array, kind: Activation) -> Array:
    xp = array_namespace(x)
    if kind is Activation.SILU:
        # exp of a clipped argument: exp(-x) overflows to inf below -88 and some libraries warn.
        return x / (1.0 + xp.exp(-xp.clip(x, -80.0, None)))
    if kind is Activation.GELU_TANH:
        return 0.5 * x * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
    if kind is Activation.GELU:
        return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))
    return xp.clip(x, 0.0, None)


def _erf(x: Array) -> Array:
    """The error function, absolute error below 1.5e-7 (Abramowitz and Stegun 7.1.26); the standard has none."""
    xp = array_namespace(x)
    t = 1.0 / (1.0 + 0.3275911 * xp.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return xp.sign(x) * (1.0 - series * xp.exp(-x * x))


# ------------------------------------------------------------------------------------------------------ attention


def write_kv(kv: LayerKV, k: Array, v: Array, slots: Array) -> LayerKV:
    xp = array_namespace(kv)
    blocks, block_size = kv.shape[1], kv.shape[2]
    flat = xp.reshape(kv, (2, blocks * block_size, *kv.shape[3:]))
    flat[0, slots] = xp.astype(k, kv.dtype)
    flat[1, slots] = xp.astype(v, kv.dtype)
    return xp.reshape(flat, kv.shape)


def copy_blocks(kv: KVCache, source: Array, target: Array) -> KVCache:
    for layer in kv:
        # The right-hand side is a copy, so a chain of copies reads only what was there before.
        layer[:, target] = layer[:, source]
    return kv


def paged_attention(
    q: Array,
    kv: LayerKV,
    meta: AttentionMetadata,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> Array:
    """Online softmax (Milakov and Gimelshein 2018) over passes of KEYS_PER_PASS slots of each token's block table."""
    xp = array_namespace(q)
    tokens, heads, size = q.shape
    if tokens > TOKENS_PER_PASS:
        parts = []
        for start in range(0, tokens, TOKENS_PER_PASS):
            part = slice(start, min(start + TOKENS_PER_PASS, tokens))
            few = replace(meta, positions=meta.positions[part], sequences=meta.sequences[part])
            parts.append(paged_attention(q[part, ...], kv, few, scale, window, softcap, sinks))
        return xp.concat(parts, axis=0)
    block_size, kv_heads = kv.shape[2], kv.shape[3]
    group = heads // kv_heads
    grouped = xp.reshape(_float32(q), (tokens, kv_heads, group, size))
    tables = xp.take(meta.block_tables, meta.sequences, axis=0)  # [tokens, blocks]
    lengths = xp.take(meta.context_lengths, meta.sequences, axis=0)
    positions = meta.positions

    lowest = -1e30  # finite: exp(lowest - lowest) is 1 and not NaN, and is multiplied by a zero of the mask
    best = xp.full_like(grouped[..., 0], lowest)  # [tokens, kv_heads, group]
    total = xp.zeros_like(best)
    if sinks is not None:
        best = xp.zeros_like(best) + xp.reshape(_float32(sinks), (1, kv_heads, group))
        total = xp.ones_like(best)
    output = xp.zeros_like(grouped)

    blocks_per_pass = max(1, KEYS_PER_PASS // block_size)
    for start in range(0, tables.shape[1], blocks_per_pass):
        chosen = tables[:, start : min(start + blocks_per_pass, tables.shape[1])]
        keys, values = (
            _gather(kv[0, ...], chosen),
            _gather(kv[1, ...], chosen),
        )  # [tokens, slots, kv_heads, size]
        slots = start * block_size + xp.arange(keys.shape[1], dtype=xp.int32, device=device(q))
        seen = (slots[None, :] <= positions[:, None]) & (slots[None, :] < lengths[:, None])
        if window is not None:
            seen = seen & (slots[None, :] > positions[:, None] - window)
        # Unowned slots may hold NaN: they are replaced, since 0 * NaN is NaN.
        keys = xp.where(seen[:, :, None, None], keys, xp.zeros_like(keys))
        values = xp.where(seen[:, :, None, None], values, xp.zeros_like(values))
        scores = xp.matmul(grouped, xp.permute_dims(keys, (0, 2, 3, 1))) * scale  # [tokens, kv_heads, group, slots]
        if softcap is not None:
            scores = softcap * xp.tanh(scores / softcap)
        mask = seen[:, None, None, :]
        scores = xp.where(mask, scores, xp.full_like(scores, lowest))
        new_best = xp.maximum(best, xp.max(scores, axis=-1))
        weights = xp.exp(scores - new_best[..., None]) * xp.astype(mask, xp.float32)
        decay = xp.exp(best - new_best)
        total = total * decay + xp.sum(weights, axis=-1)
        output = output * decay[..., None] + xp.matmul(weights, xp.permute_dims(values, (0, 2, 1, 3)))
        best = new_best
    # A padding token may see nothing at all; 0 / 1 keeps NaN out of its row.
    total = xp.where(total == 0.0, xp.ones_like(total), total)
    return xp.astype(xp.reshape(output / total[..., None], (tokens, heads, size)), q.dtype)


def _gather(side: Array, tables: Array) -> Array:
    """Slots of listed blocks. side [blocks, block_size, heads, size], tables [tokens, n] -> [tokens, slots, ...]."""
    xp = array_namespace(side)
    tokens, count = tables.shape
    rows = xp.take(side, xp.reshape(tables, (-1,)), axis=0)
    return _float32(xp.reshape(rows, (tokens, count * side.shape[1], *side.shape[2:])))


# -------------------------------------------------------------------------------------------- experts and adapters


def mixture_of_experts(ops: Ops, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
    xp = array_namespace(x)
    count = router_logits.shape[-1]
    wide = _float32(router_logits)
    odds = xp.exp(wide - xp.max(wide, axis=-1, keepdims=True))
    odds = odds / xp.sum(odds, axis=-1, keepdims=True)
    kept, chosen = ops.top_k(odds, top_k)  # [tokens, top_k]
    if experts.renormalize:
        kept = kept / xp.sum(kept, axis=-1, keepdims=True)
    output = xp.zeros_like(_float32(x))
    for expert in range(count):
        share = xp.sum(xp.where(chosen == expert, kept, xp.zeros_like(kept)), axis=-1)  # [tokens]
        inner = ops.gated_activation(ops.linear(x, _expert(experts.gate_up, expert)), experts.activation)
        outer = _float32(ops.linear(inner, _expert(experts.down, expert)))
        # Rows that did not choose this expert are replaced, not multiplied by zero: they may overflow.
        output = output + xp.where(share[:, None] > 0.0, outer * share[:, None], xp.zeros_like(outer))
    return xp.astype(output, x.dtype)


def _expert(weight: Weight, index: int) -> Weight:
    bias = None if weight.bias is None else weight.bias[index, ...]
    if isinstance(weight, QuantizedWeight):
        return QuantizedWeight(
            codes=weight.codes[index, ...],
            scales=weight.scales[index, ...],
            offsets=None if weight.offsets is None else weight.offsets[index, ...],
            bits=weight.bits,
            group_size=weight.group_size,
            codebook=weight.codebook,
            permutation=None if weight.permutation is None else weight.permutation[index, ...],
            bias=bias,
        )
    return DenseWeight(_dense(weight).array[index, ...], bias)


def lora(x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
    xp = array_namespace(x)
    delta = xp.zeros_like(_float32(y))
    for adapter in range(bank.a.shape[0]):
        mine = (adapter_ids == adapter)[:, None]
        shrunk = _float32(x) @ xp.matrix_transpose(_float32(bank.a[adapter, ...]))
        expanded = shrunk @ xp.matrix_transpose(_float32(bank.b[adapter, ...]))
        delta = delta + xp.where(mine, expanded, xp.zeros_like(expanded))
    return xp.astype(_float32(y) + delta, y.dtype)


# ------------------------------------------------------------------------------------------------------- sampling


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    xp = array_namespace(x)
    order = xp.argsort(x, axis=-1, descending=True, stable=True)[..., :k]
    return xp.take_along_axis(x, order, axis=-1), xp.astype(order, xp.int32)


def probability_units(x: Array, temperatures: Array) -> Array:
    xp = array_namespace(x)
    rows, n = x.shape
    peaks = xp.max(x, axis=-1)
    if missing := -n % _GROUP:
        x = xp.concat([x, xp.full((rows, missing), -math.inf, dtype=xp.float32, device=device(x))], axis=-1)
    grouped = xp.reshape(x, (rows, -1, _GROUP))
    weights = xp.exp((grouped - peaks[:, None, None]) / temperatures[:, None, None])
    totals = _tree_sum(_tree_sum(weights))
    units = xp.round(weights * (_UNITS / totals)[:, None, None])
    return xp.reshape(xp.astype(units, xp.int32), (rows, -1))[:, :n]


def scatter_add(x: Array, ids: Array, values: Array) -> Array:
    xp = array_namespace(x)
    result = xp.asarray(x, copy=True)
    rows = xp.arange(x.shape[0], dtype=xp.int32, device=device(x))
    for entry in range(ids.shape[1]):  # one entry of each row at a time, so that repeated ids add up
        column = ids[:, entry]
        result[rows, column] = result[rows, column] + values[:, entry]
    return result


def _tree_sum(x: Array) -> Array:
    """Sum over the last axis in a fixed order: `sum` may choose its order by the shape of the batch."""
    xp = array_namespace(x)
    while (length := x.shape[-1]) > 1:
        half = length // 2
        pairs = x[..., :half] + x[..., half : 2 * half]
        x = pairs if length % 2 == 0 else xp.concat([pairs, x[..., 2 * half :]], axis=-1)
    return x[..., 0]


# -------------------------------------------------------------------------------------------------------- helpers


def _float32(x: Array) -> Any:
    xp = array_namespace(x)
    return x if x.dtype == xp.float32 else xp.astype(x, xp.float32)


def _dense(weight: Weight) -> DenseWeight:
    if isinstance(weight, DenseWeight):
        return weight
    raise TypeError(
        f"The reference operations know DenseWeight and QuantizedWeight, and got {type(weight).__name__}; "
        "a backend whose prepare() returns a weight type of its own overrides linear, embedding and "
        "mixture_of_experts."
    )
