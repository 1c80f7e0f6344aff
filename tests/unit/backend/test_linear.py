"""embedding, linear, LoRA and experts against float64, with weights of every kind that the contract names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backend import Activation, DenseWeight, DType, ExpertWeights, LoRABank, Ops, QuantizedWeight

OPS = Ops()
KINDS = (
    "4-bit",
    "4-bit offsets",
    "8-bit offsets",
    "3-bit",
    "codebook",
    "4-bit codebook",
    "float8",
    "permutation",
    "bias",
)


def pack(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, the even column in the low nibble."""
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


def make_quantized(
    rng: np.random.Generator, kind: str, out: int, size: int, group: int
) -> tuple[QuantizedWeight, np.ndarray]:
    """A weight of that kind, and the float64 matrix [out, in] it stands for, made one element at a time."""
    bits = 4 if kind.startswith("4-bit") or kind in ("permutation", "bias") else 3 if kind == "3-bit" else 8
    codes = rng.integers(0, 2**bits, (out, size)).astype(np.uint8)
    scales = rng.standard_normal((out, size // group)).astype(np.float32)
    offsets = rng.standard_normal(scales.shape).astype(np.float32) if kind != "4-bit" and kind != "float8" else None
    codebook = rng.standard_normal(2**bits).astype(np.float32) if "codebook" in kind else None
    permutation = rng.permutation(size).astype(np.int32) if kind == "permutation" else None
    bias = rng.standard_normal(out).astype(np.float32) if kind == "bias" else None
    values = codes.astype(np.float64) if codebook is None else codebook.astype(np.float64)[codes]
    if kind == "float8":
        codes = rng.standard_normal((out, size)).astype(DType.FLOAT8_E4M3.numpy)
        values = codes.astype(np.float64)
    matrix = np.empty((out, size))
    for row in range(out):
        for column in range(size):
            offset = 0.0 if offsets is None else float(offsets[row, column // group])
            value = float(scales[row, column // group]) * values[row, column] + offset
            matrix[row, column if permutation is None else permutation[column]] = value
    stored = pack(codes) if bits == 4 else codes
    return QuantizedWeight(stored, scales, offsets, bits, group, codebook, permutation, bias), matrix


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 9),
    out=st.integers(1, 9),
    size=st.integers(1, 33),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_dense_linear_equals_float64(any_library, tokens, out, size, bias, seed):
    rng = np.random.default_rng(seed)
    x, matrix = (
        rng.standard_normal((tokens, size)).astype(np.float32),
        rng.standard_normal((out, size)).astype(np.float32),
    )
    offset = rng.standard_normal(out).astype(np.float32) if bias else None
    x_, weight = any_library.put((x, DenseWeight(matrix, offset)))
    expected = x.astype(np.float64) @ matrix.T.astype(np.float64) + (0.0 if offset is None else offset)
    np.testing.assert_allclose(any_library.get(OPS.linear(x_, weight)), expected, rtol=1e-4, atol=1e-5)


def test_linear_in_bfloat16_rounds_once(library):
    rng = np.random.default_rng(1)
    x, matrix = (rng.standard_normal(shape).astype(DType.BFLOAT16.numpy) for shape in ((5, 256), (7, 256)))
    x_, weight = library.put((x, DenseWeight(matrix)))
    expected = x.astype(np.float64) @ matrix.astype(np.float64).T
    result = library.get(OPS.linear(x_, weight)).astype(np.float64)
    np.testing.assert_allclose(result, expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "group"), [(32, 8), (24, 24), (64, 2)])
def test_quantized_linear_equals_float64(library, kind, size, group):
    rng = np.random.default_rng(2)
    weight, matrix = make_quantized(rng, kind, 5, size, group)
    x = rng.standard_normal((4, size)).astype(np.float32)
    bias = 0.0 if weight.bias is None else weight.bias.astype(np.float64)
    result = library.get(OPS.linear(library.array(x), library.put(weight)))
    np.testing.assert_allclose(result, x.astype(np.float64) @ matrix.T + bias, rtol=1e-4, atol=1e-3)


def test_embedding_takes_rows_of_a_dense_table(any_library):
    table = np.random.default_rng(3).standard_normal((11, 6)).astype(np.float32)
    ids = np.array([10, 0, 3, 3], np.int32)
    ids_, weight = any_library.put((ids, DenseWeight(table)))
    np.testing.assert_array_equal(any_library.get(OPS.embedding(ids_, weight)), table[ids])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bias"])
def test_embedding_takes_rows_of_a_quantized_table(library, kind):
    rng = np.random.default_rng(4)
    weight, matrix = make_quantized(rng, kind, 9, 16, 8)
    ids = np.array([8, 0, 2, 2, 5], np.int32)
    result = library.get(OPS.embedding(library.array(ids), library.put(weight)))
    np.testing.assert_allclose(result, matrix[ids], rtol=1e-5, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(adapters=st.lists(st.integers(-1, 2), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_lora_adds_each_rows_own_adapter(any_library, adapters, seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((len(adapters), size)).astype(np.float32) for size in (10, 7))
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4, 10), (3, 7, 4)))
    x_, y_, bank, ids = any_library.put((x, y, LoRABank(a, b), np.array(adapters, np.int32)))
    result = any_library.get(OPS.lora(x_, y_, bank, ids))
    for row, adapter in enumerate(adapters):
        if adapter == -1:
            np.testing.assert_array_equal(result[row], y[row])
        else:
            delta = b[adapter].astype(np.float64) @ (a[adapter].astype(np.float64) @ x[row])
            np.testing.assert_allclose(result[row], y[row] + delta, rtol=1e-4, atol=1e-4)


def experts_oracle(x, logits, gate_up, down, top_k, renormalize):
    """Token by token, expert by expert, in float64; SiLU gates."""
    result = np.zeros((len(x), down.shape[1]))
    for token, row in enumerate(x.astype(np.float64)):
        odds = np.exp(logits[token].astype(np.float64) - logits[token].max())
        odds /= odds.sum()
        chosen = np.argsort(-logits[token], kind="stable")[:top_k]
        share = odds[chosen] / (odds[chosen].sum() if renormalize else 1.0)
        for weight, expert in zip(share, chosen, strict=True):
            gate, up = np.split(gate_up[expert].astype(np.float64) @ row, 2)
            result[token] += weight * (down[expert].astype(np.float64) @ (gate / (1 + np.exp(-gate)) * up))
    return result


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_experts_equal_float64(any_library, renormalize, top_k):
    rng = np.random.default_rng(5)
    x, logits = (rng.standard_normal((6, size)).astype(np.float32) for size in (8, 5))
    gate_up, down = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 12, 8), (5, 8, 6)))
    logits[0] = 0.0  # ties: the lowest experts win
    experts = ExpertWeights(DenseWeight(gate_up), DenseWeight(down), Activation.SILU, renormalize)
    x_, logits_, experts_ = any_library.put((x, logits, experts))
    result = any_library.get(OPS.mixture_of_experts(x_, logits_, experts_, top_k))
    expected = experts_oracle(x, logits, gate_up, down, top_k, renormalize)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_quantized_experts_equal_dense_ones(library):
    rng = np.random.default_rng(6)
    x, logits = (rng.standard_normal((6, size)).astype(np.float32) for size in (8, 3))
    stacks, matrices = [], []
    for out, size in ((12, 8), (8, 6)):
        pairs = [make_quantized(rng, "permutation", out, size, 2) for _ in range(3)]
        first = pairs[0][0]
        parts = ("codes", "scales", "offsets", "permutation")
        stacked = {part: np.stack([getattr(weight, part) for weight, _ in pairs]) for part in parts}
        bias = rng.standard_normal((3, out)).astype(np.float32)
        stacks.append(QuantizedWeight(**stacked, bits=4, group_size=first.group_size, bias=bias))
        matrices.append(DenseWeight(np.stack([matrix for _, matrix in pairs]).astype(np.float32), bias))
    x_, logits_, quantized, dense = library.put((x, logits, ExpertWeights(*stacks), ExpertWeights(*matrices)))
    result = library.get(OPS.mixture_of_experts(x_, logits_, quantized, 2))
    expected = library.get(OPS.mixture_of_experts(x_, logits_, dense, 2))
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_an_expert_that_overflows_does_not_reach_rows_that_did_not_choose_it(library):
    x, logits = np.ones((2, 4), np.float32), np.array([[5, 0], [0, 5]], np.float32)
    gate_up, down = np.ones((2, 4, 4), np.float32), np.ones((2, 4, 2), np.float32)
    down[1] = np.inf
    x_, logits_, experts = library.put((x, logits, ExpertWeights(DenseWeight(gate_up), DenseWeight(down))))
    with np.errstate(invalid="ignore"):  # inf * 0 in the rows that are replaced
        result = library.get(OPS.mixture_of_experts(x_, logits_, experts, 1))
    assert np.isfinite(result[0]).all()
    assert np.isinf(result[1]).all()


def test_a_weight_type_of_a_backends_own_needs_ops_of_its_own():
    class Tiled:
        bias = None

    with pytest.raises(TypeError, match="got Tiled; a backend whose prepare"):
        OPS.linear(np.ones((1, 2), np.float32), Tiled())
