"""Norm, rotary, gated activations, probabilities, top_k and scatter_add against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backend import Activation, DType, Ops, RotaryTable

OPS = Ops()


@pytest.mark.parametrize("shape", [(5, 16), (3, 2, 8)])
@pytest.mark.parametrize("with_residual", [True, False])
def test_rms_norm_returns_the_norm_and_the_sum_it_is_of(any_library, shape, with_residual):
    rng = np.random.default_rng(0)
    x, residual = rng.standard_normal((2, *shape)).astype(np.float32)
    weight = rng.standard_normal(shape[-1]).astype(np.float32)
    x_, weight_, residual_ = any_library.put((x, weight, residual if with_residual else None))
    normed, total = (any_library.get(part) for part in OPS.rms_norm(x_, weight_, 1e-3, residual_))
    expected = x.astype(np.float64) + (residual if with_residual else 0.0)
    np.testing.assert_allclose(total, expected, rtol=1e-6, atol=1e-6)
    expected /= np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(normed, expected * weight, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_float16_does_not_overflow(library):
    """200 squared times 4096 is far beyond float16: the mean is taken in float32."""
    x = np.full((1, 4096), 200.0, np.float16)
    x_, weight = library.put((x, np.ones(4096, np.float16)))
    normed, _ = OPS.rms_norm(x_, weight, 1e-6)
    np.testing.assert_allclose(library.get(normed).astype(np.float64), 1.0, rtol=1e-3)


def rotary_oracle(x, positions, cos_sin, interleaved):
    """Each pair turned as a complex number, in float64."""
    size, result = cos_sin.shape[1], x.astype(np.float64)
    for token, position in enumerate(positions):
        for pair in range(size // 2):
            first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
            turn = complex(cos_sin[position, pair], cos_sin[position, pair + size // 2])
            turned = (x[token, :, first].astype(np.float64) + 1j * x[token, :, second]) * turn
            result[token, :, first], result[token, :, second] = turned.real, turned.imag
    return result


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rotary_size", [16, 8, 2])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_rotary_turns_the_first_entries_of_a_head_and_keeps_the_rest(library, interleaved, rotary_size, dtype):
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((4, heads, 16)).astype(dtype.numpy) for heads in (4, 2))
    angles = np.arange(32)[:, None] * 100.0 ** (-np.arange(rotary_size // 2) / rotary_size)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    positions = np.array([31, 0, 7, 7], np.int32)
    q_, k_, positions_, table_ = library.put((q, k, positions, RotaryTable(table, interleaved)))
    tolerance = 1e-6 if dtype is DType.FLOAT32 else 2**-8
    for result, source in zip(OPS.rotary(q_, k_, positions_, table_), (q, k), strict=True):
        expected = rotary_oracle(source, positions, table, interleaved)
        np.testing.assert_allclose(library.get(result).astype(np.float64), expected, rtol=tolerance, atol=tolerance)


def activation_oracle(kind, gate):
    if kind is Activation.SILU:
        return gate / (1 + np.exp(-gate))
    if kind is Activation.GELU:
        return 0.5 * gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2)))
    if kind is Activation.GELU_TANH:
        return 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return np.maximum(gate, 0)


@pytest.mark.parametrize("kind", Activation)
def test_gated_activation_equals_float64_and_stays_finite_far_out(any_library, kind):
    x = np.random.default_rng(2).standard_normal((6, 32)).astype(np.float32) * 4
    x[0, :3] = [-300.0, 300.0, -88.8]  # where exp overflows float32
    with np.errstate(over="ignore"):  # the oracle's own
        expected = activation_oracle(kind, x[:, :16].astype(np.float64)) * x[:, 16:]
    result = any_library.get(OPS.gated_activation(any_library.array(x), kind))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("n", [1, 5, 127, 128, 129, 1000])
def test_probability_units_are_next_to_the_softmax_at_each_rows_temperature(any_library, n):
    x = np.random.default_rng(n).standard_normal((5, n)).astype(np.float32) * 3
    x[:, 1::3] = -np.inf
    temperatures = np.array([1.0, 0.01, 0.5, 7.0, 100.0], np.float32)
    units = any_library.get(OPS.probability_units(any_library.array(x), any_library.array(temperatures)))
    scaled = x.astype(np.float64) / temperatures[:, None]
    exact = np.exp(scaled - scaled.max(-1, keepdims=True))
    exact *= 2**30 / exact.sum(-1, keepdims=True)
    assert units.dtype == np.int32
    assert (np.abs(units - exact) <= 0.6 + 2e-6 * exact).all()
    assert not units[:, 1::3].any()
    assert (units.astype(np.float32) == units).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=4),
    k=st.integers(1, 7),
    low=st.booleans(),
)
def test_top_k_is_descending_and_the_lowest_index_wins_a_tie(any_library, rows, k, low):
    x = np.array(rows, np.float32)
    x[x == -3] = -np.inf if low else -3  # masked logits
    values, ids = (any_library.get(part) for part in OPS.top_k(any_library.array(x), k))
    expected = np.array([sorted(range(7), key=lambda i: (-row[i], i))[:k] for row in x])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis=1))


@settings(max_examples=25, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 4), st.integers(-8, 8)), min_size=1, max_size=6),
    rows=st.integers(1, 3),
)
def test_scatter_add_adds_up_repeated_ids_and_leaves_its_argument(library, edits, rows):
    x = np.arange(rows * 5, dtype=np.float32).reshape(rows, 5)
    ids = np.array([[(i + row) % 5 for i, _ in edits] for row in range(rows)], np.int32)
    values = np.array([[value for _, value in edits]] * rows, np.float32)
    expected = x.copy()
    for row in range(rows):
        for i, value in zip(ids[row], values[row], strict=True):
            expected[row, i] += value
    x_, ids_, values_ = library.put((x, ids, values))
    np.testing.assert_array_equal(library.get(OPS.scatter_add(x_, ids_, values_)), expected)
    np.testing.assert_array_equal(library.get(x_), x)
