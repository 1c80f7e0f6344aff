"""The operations on plain arrays in float64, from their definitions and not from the contract's own code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.backend import Activation

Float64Array = NDArray[np.float64]
Int32Array = NDArray[np.int32]
AnyArray = NDArray[Any]


def rms_norm(
    x: AnyArray, weight: AnyArray, eps: float, residual: AnyArray | None = None
) -> tuple[Float64Array, Float64Array]:
    """Zhang and Sennrich 2019. x, residual [..., hidden], weight [hidden] -> (normed, sum), both [..., hidden]."""
    total = x.astype(np.float64) if residual is None else x.astype(np.float64) + residual.astype(np.float64)
    length = np.sqrt(np.mean(np.square(total), axis=-1, keepdims=True) + eps)
    return total / length * weight.astype(np.float64), total


def rotary(x: AnyArray, positions: Int32Array, cos_sin: AnyArray, interleaved: bool) -> Float64Array:
    """Su et al. 2021: each pair of entries is a complex number, turned by its position's angle.

    x [tokens, heads, head_size], positions [tokens], cos_sin [positions, rotary_size] with the cosines first.
    interleaved: pairs are (2i, 2i + 1) and not (i, i + rotary_size / 2). Entries past rotary_size stay as they are.
    """
    pairs = cos_sin.shape[-1] // 2
    index = np.arange(pairs)
    first, second = (2 * index, 2 * index + 1) if interleaved else (index, index + pairs)
    wide = x.astype(np.float64)
    table = cos_sin.astype(np.float64)[positions]
    turn = table[:, None, :pairs] + 1j * table[:, None, pairs:]  # [tokens, 1, pairs]
    turned = (wide[..., first] + 1j * wide[..., second]) * turn
    result = wide.copy()
    result[..., first], result[..., second] = turned.real, turned.imag
    return result


def activation(gate: Float64Array, kind: Activation) -> Float64Array:
    """The non-linearity of a gated layer, finite wherever its argument is."""
    if kind is Activation.SILU:
        return gate * 0.5 * (1.0 + np.tanh(0.5 * gate))  # the logistic function without an exp that overflows
    if kind is Activation.GELU:
        return 0.5 * gate * (1.0 + np.array(_erf(gate / math.sqrt(2.0)), np.float64))
    if kind is Activation.GELU_TANH:
        with np.errstate(over="ignore"):  # the tanh of an infinite argument is the 1 that it should be
            return 0.5 * gate * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)))
    return np.maximum(gate, 0.0)


def gated_activation(x: AnyArray, kind: Activation) -> Float64Array:
    """x [..., 2 * intermediate], the gate first -> activation(gate) * up [..., intermediate]."""
    gate, up = np.split(x.astype(np.float64), 2, axis=-1)
    return activation(gate, kind) * up


def top_k(x: AnyArray, k: int) -> tuple[AnyArray, Int32Array]:
    """The k largest entries of each row [rows, n], the lowest index first among equals: values and indices [rows, k].

    The values are the entries themselves, in x's dtype: the result is exact.
    """
    order = np.argsort(-x.astype(np.float64), axis=-1, kind="stable")[:, :k]
    return np.take_along_axis(x, order, axis=-1), order.astype(np.int32)


def softmax(x: AnyArray, temperatures: AnyArray) -> Float64Array:
    """The probabilities of each row [rows, n] of logits at its temperature [rows]."""
    scaled = (x.astype(np.float64) - np.max(x, axis=-1, keepdims=True)) / temperatures.astype(np.float64)[:, None]
    weights = np.exp(scaled)
    shares: Float64Array = weights / np.sum(weights, axis=-1, keepdims=True)
    return shares


def scatter_add(x: AnyArray, ids: Int32Array, values: AnyArray) -> Float64Array:
    """x [rows, n] with values [rows, e] added at ids [rows, e], one by one."""
    result = x.astype(np.float64)
    np.add.at(result, (np.arange(len(x))[:, None], ids), values.astype(np.float64))
    return result


_erf = np.vectorize(math.erf, otypes=[np.float64])
