"""The suite's float64 oracles against implementations of others: torch in float64, SciPy, and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch
from torch.nn import functional

from octavo.backend import Activation, DenseWeight, DType, ExpertWeights, LoRABank, QuantizedWeight
from octavo_conformance.oracles import arrays, linear


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def normal(rng: np.random.Generator, *shape: int, dtype: DType = DType.FLOAT32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype.numpy)


def close(got: np.ndarray, expected: np.ndarray | torch.Tensor) -> None:
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, np.asarray(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(5, 48), (3, 4, 16)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_is_that_of_torch(rng, shape, eps):
    x, residual, weight = normal(rng, *shape), normal(rng, *shape), normal(rng, shape[-1])
    wide, scale = torch.from_numpy(x.astype(np.float64)), torch.from_numpy(weight.astype(np.float64))
    normed, total = arrays.rms_norm(x, weight, eps)
    close(normed, functional.rms_norm(wide, shape[-1:], scale, eps))
    close(total, wide)
    normed, total = arrays.rms_norm(x, weight, eps, residual)
    wide = wide + torch.from_numpy(residual.astype(np.float64))
    close(normed, functional.rms_norm(wide, shape[-1:], scale, eps))
    close(total, wide)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_size", [16, 6])
def test_rotary_multiplies_with_rotation_matrices(rng, interleaved, rotary_size):
    x, positions = normal(rng, 4, 3, 16), np.array([9, 0, 3, 3], np.int32)
    angles = rng.uniform(0, 6, (10, rotary_size // 2))
    cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    expected = np.empty(x.shape)
    for token, position in enumerate(positions):
        matrix = np.eye(16)
        for pair, angle in enumerate(angles[position]):
            at = [2 * pair, 2 * pair + 1] if interleaved else [pair, pair + rotary_size // 2]
            matrix[np.ix_(at, at)] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        expected[token] = x[token].astype(np.float64) @ matrix.T
    close(arrays.rotary(x, positions, cos_sin, interleaved), expected)


def test_rotary_of_halves_is_that_of_transformers(rng):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k, angles = normal(rng, 5, 4, 8), normal(rng, 5, 2, 8), rng.uniform(0, 6, (5, 4))
    cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    cos, sin = (torch.from_numpy(np.tile(part, (1, 2)))[None] for part in (np.cos(angles), np.sin(angles)))
    wide = [torch.from_numpy(x.astype(np.float64)).transpose(0, 1)[None] for x in (q, k)]
    for x, expected in zip((q, k), apply_rotary_pos_emb(*wide, cos, sin), strict=True):
        close(arrays.rotary(x, np.arange(5, dtype=np.int32), cos_sin, False), expected[0].transpose(0, 1))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Activation.SILU, functional.silu),
        (Activation.GELU, functional.gelu),
        (Activation.GELU_TANH, lambda x: functional.gelu(x, approximate="tanh")),
        (Activation.RELU, functional.relu),
    ],
)
def test_activations_are_those_of_torch_and_gate_the_second_half(rng, kind, expected):
    x = np.concatenate([np.linspace(-40, 40, 64), normal(rng, 64)])[None].astype(np.float32)
    wide = torch.from_numpy(x.astype(np.float64))
    result = arrays.gated_activation(x, kind)
    np.testing.assert_allclose(result, expected(wide[:, :64]) * wide[:, 64:], rtol=1e-10, atol=1e-13)


def test_gelu_is_that_of_scipy(rng):
    gate = normal(rng, 200).astype(np.float64) * 4
    close(arrays.activation(gate, Activation.GELU), gate * scipy.special.ndtr(gate))


@pytest.mark.parametrize("kind", Activation)
def test_activations_are_finite_far_out(kind):
    far = np.array([-1e300, -1e30, -750.0, 750.0, 1e30])
    result = arrays.activation(far, kind)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result[3:], far[3:])
    np.testing.assert_allclose(result[:3], 0.0, atol=1e-300)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_top_k_sorts_by_falling_value_and_rising_index(rng, k):
    x = rng.integers(-2, 3, (6, 9)).astype(np.float32)
    x[0, 4:] = -np.inf
    x[1] = np.where(x[1] > 0, 0.0, -0.0)
    values, indices = arrays.top_k(x, k)
    expected = [sorted(range(9), key=lambda i: (-row[i], i))[:k] for row in x.tolist()]
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, torch.topk(torch.from_numpy(x), k).values)


def test_softmax_is_that_of_scipy_at_each_rows_temperature(rng):
    x, temperatures = normal(rng, 4, 9) * 50, np.array([0.01, 1.0, 3.0, 100.0], np.float32)
    x[:, 2] = -np.inf
    close(arrays.softmax(x, temperatures), scipy.special.softmax(x.astype(np.float64) / temperatures[:, None], axis=-1))


def test_scatter_add_is_that_of_torch(rng):
    x, values = normal(rng, 3, 7), normal(rng, 3, 20)
    ids = rng.integers(0, 7, (3, 20)).astype(np.int32)
    expected = torch.from_numpy(x.astype(np.float64)).scatter_add(
        1, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(values.astype(np.float64))
    )
    close(arrays.scatter_add(x, ids, values), expected)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_linear_is_that_of_torch(rng, dtype):
    x, matrix, bias = (normal(rng, *shape, dtype=dtype) for shape in ((4, 9), (5, 9), (5,)))
    wide = [torch.from_numpy(array.astype(np.float64)) for array in (x, matrix, bias)]
    close(linear.linear(x, DenseWeight(matrix, bias)), functional.linear(*wide))
    close(linear.linear(x, DenseWeight(matrix)), functional.linear(*wide[:2]))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("features", ["", "offsets", "codebook", "permutation", "offsets codebook permutation"])
def test_quantized_matrix_entry_by_entry(rng, bits, features):
    experts, out, size, group = 2, 3, 12, 4
    codes = rng.integers(0, 2**bits, (experts, out, size)).astype(np.uint8)
    scales, offsets = normal(rng, experts, out, size // group), normal(rng, experts, out, size // group)
    codebook = normal(rng, 2**bits)
    permutation = np.stack([rng.permutation(size) for _ in range(experts)]).astype(np.int32)
    expected = np.empty(codes.shape)
    for expert, row, column in np.ndindex(*codes.shape):
        code = codes[expert, row, column]
        value = float(codebook[code]) if "codebook" in features else float(code)
        value *= float(scales[expert, row, column // group])
        value += float(offsets[expert, row, column // group]) if "offsets" in features else 0.0
        expected[expert, row, permutation[expert, column] if "permutation" in features else column] = value
    packed = codes if bits != 4 else codes[..., 0::2] + 16 * codes[..., 1::2]
    weight = QuantizedWeight(
        codes=packed.astype(np.uint8),
        scales=scales,
        offsets=offsets if "offsets" in features else None,
        bits=bits,
        group_size=group,
        codebook=codebook if "codebook" in features else None,
        permutation=permutation if "permutation" in features else None,
    )
    close(linear.matrix(weight), expected)


def test_float8_codes_are_their_own_values(rng):
    codes, scales = normal(rng, 3, 8, dtype=DType.FLOAT8_E4M3), normal(rng, 3, 2)
    weight = QuantizedWeight(codes, scales, None, bits=8, group_size=4)
    close(linear.matrix(weight), codes.astype(np.float64) * np.repeat(scales.astype(np.float64), 4, axis=1))


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [1, 3, 4])
def test_experts_are_weighted_token_by_token(rng, renormalize, top_k):
    x, logits = normal(rng, 6, 8), normal(rng, 6, 4)
    logits[2] = 1.0  # all experts alike: the first ones are taken
    gate_up, down = DenseWeight(normal(rng, 4, 10, 8), normal(rng, 4, 10)), DenseWeight(normal(rng, 4, 8, 5))
    result = linear.mixture_of_experts(x, logits, ExpertWeights(gate_up, down, Activation.RELU, renormalize), top_k)
    odds = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    for token in range(6):
        chosen = sorted(range(4), key=lambda i: (-logits[token, i], i))[:top_k]
        total = odds[token, chosen].sum() if renormalize else 1.0
        expected = np.zeros(8)
        for expert in chosen:
            gate, up = np.split(gate_up.array[expert].astype(np.float64) @ x[token] + gate_up.bias[expert], 2)
            output = down.array[expert].astype(np.float64) @ (np.maximum(gate, 0) * up)
            expected += odds[token, expert] / total * output
        close(result[token], expected)


def test_experts_are_those_of_mixtral_in_transformers(rng):
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(hidden_size=8, intermediate_size=6, num_local_experts=4, num_experts_per_tok=2)
    block = MixtralExperts(config).double()
    x, logits = normal(rng, 5, 8), normal(rng, 5, 4)
    gate_up, down = normal(rng, 4, 12, 8), normal(rng, 4, 8, 6)
    block.gate_up_proj.data, block.down_proj.data = (torch.from_numpy(w.astype(np.float64)) for w in (gate_up, down))
    odds = torch.softmax(torch.from_numpy(logits.astype(np.float64)), dim=-1)
    shares, chosen = torch.topk(odds, 2)
    with torch.no_grad():
        expected = block(torch.from_numpy(x.astype(np.float64)), chosen, shares / shares.sum(-1, keepdim=True))
    close(linear.mixture_of_experts(x, logits, ExpertWeights(DenseWeight(gate_up), DenseWeight(down)), 2), expected)


def test_lora_is_a_product_of_one_hot_rows(rng):
    x, y = normal(rng, 7, 6), normal(rng, 7, 4)
    bank = LoRABank(normal(rng, 3, 2, 6), normal(rng, 3, 4, 2))
    ids = np.array([2, -1, 0, 0, 1, 2, -1], np.int32)
    mine = ids[:, None] == np.arange(3)  # no row is any adapter's at -1
    expected = y + np.einsum("ta,aor,ari,ti->to", *(part.astype(np.float64) for part in (mine, bank.b, bank.a, x)))
    result = linear.lora(x, y, bank, ids)
    close(result, expected)
    np.testing.assert_array_equal(result[ids == -1], y[ids == -1])
