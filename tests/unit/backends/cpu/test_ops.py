"""The other operations against float64 oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo.backend import (
    Activation,
    ArraySource,
    AttentionMetadata,
    ConcatenatedSource,
    DenseWeight,
    Device,
    DType,
    KVLayout,
    RotaryTable,
    WeightRole,
)

FLOATS = [DType.FLOAT32, DType.BFLOAT16]


def tolerance(dtype: DType) -> float:
    return 2e-5 if dtype is DType.FLOAT32 else 1e-2


def assert_close(got: np.ndarray, expected: np.ndarray, dtype: DType) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=0, atol=tolerance(dtype) * scale)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(576, 960), (576, 7), (40, 49), (1536, 100), (2100, 30), (13, 1)])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 33, 130])
def test_linear(device: Device, rows: int, shape: tuple[int, int], dtype: DType) -> None:
    rng = np.random.default_rng(rows)
    inner, out = shape
    x, w, b = (rng.standard_normal(s).astype(dtype.numpy) for s in ((rows, inner), (out, inner), (out,)))
    weight = device.prepare(DenseWeight(device.upload(w.copy()), device.upload(b.copy())), WeightRole.LINEAR)
    got = device.download(device.ops.linear(device.upload(x), weight))
    assert got.shape == (rows, out)
    assert DType.of(got) is dtype
    assert_close(got, x.astype(np.float64) @ w.astype(np.float64).T + b.astype(np.float64), dtype)


def test_a_row_of_linear_has_the_same_bits_in_every_batch(device: Device) -> None:
    if device.info.kernel == "torch":
        pytest.skip("torch's products choose their order by shape")
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((200, 1536), (100, 1536)))
    weight = device.prepare(DenseWeight(device.upload(w)), WeightRole.LINEAR)
    whole = device.download(device.ops.linear(device.upload(x), weight))
    for rows in (1, 5, 8, 31):
        np.testing.assert_array_equal(whole[:rows], device.download(device.ops.linear(device.upload(x[:rows]), weight)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_tied_embedding_is_read_by_rows_from_the_packed_weight(device: Device, dtype: DType) -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((100, 40)).astype(dtype.numpy)
    weight = device.prepare(DenseWeight(device.upload(w.copy())), WeightRole.TIED_EMBEDDING)
    ids = np.array([0, 99, 47, 48, 3, 3], np.int32)
    np.testing.assert_array_equal(device.download(device.ops.embedding(device.upload(ids), weight)), w[ids])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 576), (65, 576), (5, 3, 24), (2, 7)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(device: Device, shape: tuple[int, ...], dtype: DType, with_residual: bool) -> None:
    rng = np.random.default_rng(3)
    x, r = (rng.standard_normal(shape).astype(dtype.numpy) for _ in range(2))
    w = rng.standard_normal(shape[-1]).astype(dtype.numpy)
    residual = device.upload(r) if with_residual else None
    normed, total = device.ops.rms_norm(device.upload(x), device.upload(w), 1e-5, residual)
    wide = (x + r if with_residual else x).astype(np.float64)
    np.testing.assert_array_equal(device.download(total), x + r if with_residual else x)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * w.astype(np.float64)
    assert_close(device.download(normed), expected, dtype)


def test_rms_norm_of_a_slice(device: Device) -> None:
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((5, 6, 64)).astype(np.float32), np.ones(64, np.float32)
    whole, _ = device.ops.rms_norm(device.upload(x), device.upload(w), 1e-5)
    part, _ = device.ops.rms_norm(device.upload(x)[:, 2:4], device.upload(w), 1e-5)
    np.testing.assert_array_equal(device.download(part), device.download(whole)[:, 2:4])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", list(Activation))
def test_gated_activation(device: Device, kind: Activation, dtype: DType) -> None:
    erf = np.vectorize(math.erf)
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((33, 2 * 101)) * 4).astype(dtype.numpy)
    x[0, :4] = [100, -100, -60, 0]
    gate, up = x[:, :101].astype(np.float64), x[:, 101:].astype(np.float64)
    activated = {
        Activation.SILU: lambda g: g / (1 + np.exp(-g)),
        Activation.GELU: lambda g: 0.5 * g * (1 + erf(g / np.sqrt(2))),
        Activation.GELU_TANH: lambda g: 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))),
        Activation.RELU: lambda g: np.maximum(g, 0),
    }[kind](gate)
    assert_close(device.download(device.ops.gated_activation(device.upload(x), kind)), activated * up, dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_size", [64, 32])
def test_rotary_write_kv_rotates_queries_and_the_keys_that_attention_reads(
    device: Device, rotary_size: int, interleaved: bool
) -> None:
    rng = np.random.default_rng(6)
    tokens, heads, kv_heads, size = 21, 4, 2, 64
    angles = rng.uniform(0, 6, (50, rotary_size // 2))
    table = RotaryTable(
        device.upload(np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)), interleaved
    )
    qkv = rng.standard_normal((tokens, heads + 2 * kv_heads, size)).astype(np.float32)
    positions = np.arange(tokens, dtype=np.int32)
    fused = device.upload(qkv)
    q, k, v = fused[:, :heads], fused[:, heads : heads + kv_heads], fused[:, heads + kv_heads :]
    kv = device.allocate_kv(KVLayout(1, kv_heads, size, 16, DType.FLOAT32), 4)[0]
    slots = positions + 16
    q_out, kv = device.ops.rotary_write_kv(q, k, v, device.upload(positions), table, kv, device.upload(slots))

    def rotated(x: np.ndarray) -> np.ndarray:
        y = x.astype(np.float64).copy()
        half = rotary_size // 2
        first, second = slice(0, half), slice(half, rotary_size)
        if interleaved:
            first, second = slice(0, rotary_size, 2), slice(1, rotary_size, 2)
        cos, sin = np.cos(angles)[positions][:, None], np.sin(angles)[positions][:, None]
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., second] * cos + x[..., first] * sin
        return y

    np.testing.assert_allclose(device.download(q_out), rotated(qkv[:, :heads]), rtol=0, atol=1e-5)
    meta = AttentionMetadata(
        positions=device.upload(positions),
        slots=device.upload(slots),
        sequences=device.upload(np.zeros(tokens, np.int32)),
        query_starts=device.upload(np.array([0, tokens], np.int32)),
        context_lengths=device.upload(np.array([tokens], np.int32)),
        block_tables=device.upload(np.array([[1, 2]], np.int32)),
    )
    got = device.download(device.ops.paged_attention(q_out, kv, meta, 0.125))
    keys, values = rotated(qkv[:, heads : heads + kv_heads]), qkv[:, heads + kv_heads :].astype(np.float64)
    scores = np.einsum("qhd,khd->hqk", rotated(qkv[:, :heads]), np.repeat(keys, 2, 1)) * 0.125
    scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), np.repeat(values, 2, 1))
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-5)


def test_top_k_keeps_the_lowest_index_of_equals(device: Device) -> None:
    rng = np.random.default_rng(7)
    x = rng.integers(0, 9, (6, 5000)).astype(np.float32)  # many equals, at the border too
    x[3] = 1.0
    x[4] = rng.permutation(5000)
    x[5, 10:] = -np.inf
    for k in (1, 8, 100, 5000):
        order = np.argsort(-x, axis=-1, kind="stable")[:, :k]
        values, ids = map(device.download, device.ops.top_k(device.upload(x.copy()), k))
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, order)
        np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))


def test_scatter_add_adds_repeated_ids(device: Device) -> None:
    x = np.zeros((2, 5), np.float32)
    ids, values = np.array([[1, 1, 4], [0, 2, 2]], np.int32), np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    uploaded = device.upload(x.copy())
    got = device.download(device.ops.scatter_add(uploaded, device.upload(ids), device.upload(values)))
    np.testing.assert_array_equal(got, [[0, 3, 0, 0, 3], [4, 0, 11, 0, 0]])
    np.testing.assert_array_equal(device.download(uploaded), x)  # the argument is left alone


def test_copy_blocks_reads_all_before_it_writes(device: Device) -> None:
    kv = device.allocate_kv(KVLayout(2, 1, 64, 16, DType.FLOAT32), 5)
    memories = [getattr(layer, "memory", layer) for layer in kv]
    axis = 0 if memories[0].ndim == 2 else 1
    for memory in memories:
        for block in range(5):
            memory.select(axis, block).fill_(block)
    chain = np.array([[1, 2, 0], [2, 3, 0]], np.int32)
    device.ops.copy_blocks(kv, device.upload(chain[0]), device.upload(chain[1]))
    for memory in memories:
        assert [float(memory.select(axis, block).flatten()[0]) for block in range(5)] == [0, 1, 1, 2, 4]


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("wanted", FLOATS)
def test_load_converts_and_joins_read_only_tensors(device: Device, stored: DType, wanted: DType) -> None:
    rng = np.random.default_rng(8)
    parts = [rng.standard_normal((rows, 12)).astype(stored.numpy) for rows in (3, 5)]
    for part in parts:
        part.flags.writeable = False
    joined = ConcatenatedSource("qkv", [ArraySource(f"part {i}", part) for i, part in enumerate(parts)])
    got = device.download(device.load(joined, wanted))
    np.testing.assert_array_equal(got, np.concatenate(parts).astype(wanted.numpy))
    assert DType.of(got) is wanted


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16, DType.INT32])
def test_upload_and_download_keep_bits_and_dtype(device: Device, dtype: DType) -> None:
    host = np.arange(12).reshape(3, 4).astype(dtype.numpy)
    back = device.download(device.upload(host))
    assert back.dtype == host.dtype
    np.testing.assert_array_equal(back, host)
