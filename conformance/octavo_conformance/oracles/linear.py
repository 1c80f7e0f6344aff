"""The operations with weights in float64: projections, experts and adapters."""

from __future__ import annotations

import numpy as np

from octavo.backend import DenseWeight, ExpertWeights, LoRABank, QuantizedWeight
from octavo_conformance.oracles.arrays import AnyArray, Float64Array, Int32Array, gated_activation

HostWeight = DenseWeight | QuantizedWeight
"""A weight of the contract whose arrays are NumPy's."""


def matrix(weight: HostWeight) -> Float64Array:
    """The matrix [..., out, in] that a weight stands for, its columns in the order of the inputs."""
    if isinstance(weight, DenseWeight):
        return np.asarray(weight.array, np.float64)
    values = _values(weight)
    group = np.arange(values.shape[-1]) // weight.group_size
    stored = values * np.asarray(weight.scales, np.float64)[..., group]
    if weight.offsets is not None:
        stored += np.asarray(weight.offsets, np.float64)[..., group]
    if weight.permutation is None:
        return stored
    columns = np.broadcast_to(np.asarray(weight.permutation)[..., None, :], stored.shape)
    result = np.empty_like(stored)
    np.put_along_axis(result, columns, stored, axis=-1)  # stored column i belongs to input permutation[i]
    return result


def linear(x: AnyArray, weight: HostWeight) -> Float64Array:
    """x @ W.T + bias. x [tokens, in] -> [tokens, out]."""
    y = np.asarray(x, np.float64) @ np.swapaxes(matrix(weight), -1, -2)
    return y if weight.bias is None else y + np.asarray(weight.bias, np.float64)


def mixture_of_experts(x: AnyArray, router_logits: AnyArray, experts: ExpertWeights, top_k: int) -> Float64Array:
    """Shazeer et al. 2017, as Mixtral has it. x [tokens, hidden], router_logits [tokens, experts] -> [tokens, hidden].

    Only the tokens that chose an expert are run through it, as a kernel that groups tokens by expert does.
    """
    logits = np.asarray(router_logits, np.float64)
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    odds /= odds.sum(axis=-1, keepdims=True)
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]  # [tokens, top_k]
    shares = np.take_along_axis(odds, chosen, axis=-1)
    if experts.renormalize:
        shares /= shares.sum(axis=-1, keepdims=True)
    result = np.zeros(x.shape, np.float64)
    for expert in range(logits.shape[-1]):
        tokens, rank = np.nonzero(chosen == expert)
        inner = gated_activation(linear(x[tokens], _expert(experts.gate_up, expert)), experts.activation)
        result[tokens] += shares[tokens, rank, None] * linear(inner, _expert(experts.down, expert))
    return result


def lora(x: AnyArray, y: AnyArray, bank: LoRABank, adapter_ids: Int32Array) -> Float64Array:
    """Hu et al. 2021, each row with its own adapter or, at -1, none. x [tokens, in], y [tokens, out] -> like y."""
    result = np.asarray(y, np.float64).copy()
    for token, adapter in enumerate(adapter_ids.tolist()):
        if adapter >= 0:
            shrunk = np.asarray(bank.a[adapter], np.float64) @ np.asarray(x[token], np.float64)
            result[token] += np.asarray(bank.b[adapter], np.float64) @ shrunk
    return result


def _values(weight: QuantizedWeight) -> Float64Array:
    """What the codes stand for before scale and offset."""
    codes = np.asarray(weight.codes)
    if codes.dtype.kind != "u":  # float8: its own value
        return codes.astype(np.float64)
    if weight.bits == 4:
        unpacked = np.empty((*codes.shape[:-1], 2 * codes.shape[-1]), np.uint8)
        unpacked[..., 0::2], unpacked[..., 1::2] = codes % 16, codes // 16
        codes = unpacked
    return codes.astype(np.float64) if weight.codebook is None else np.asarray(weight.codebook, np.float64)[codes]


def _expert(weight: HostWeight, index: int) -> DenseWeight:
    bias = None if weight.bias is None else weight.bias[index]
    return DenseWeight(matrix(weight)[index], bias)
