"""Quantized weights as the backend keeps them: the same numbers as stored, and never a whole matrix of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo.backend import QuantizedWeight, WeightRole, array_ops
from octavo_xla.ops import TransposedWeight, prepare
from octavo_xla.ops.linear import embedding, linear

GROUP = 32


def weight(bits: int, out: int, size: int, *, codebook: bool = False, permuted: bool = False) -> QuantizedWeight:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (out, size)).astype(np.uint8)
    if bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    scales, offsets = (rng.standard_normal((out, size // GROUP)).astype(np.float32) for _ in range(2))
    return QuantizedWeight(
        codes,
        scales,
        offsets,
        bits,
        GROUP,
        codebook=rng.standard_normal(2**bits).astype(np.float32) if codebook else None,
        permutation=rng.permutation(size).astype(np.int32) if permuted else None,
        bias=rng.standard_normal(out).astype(np.float32),
    )


def on_device(host: QuantizedWeight) -> QuantizedWeight:
    names = ("codes", "scales", "offsets", "codebook", "permutation", "bias")
    sides = {name: getattr(host, name) for name in names}
    return QuantizedWeight(
        bits=host.bits,
        group_size=host.group_size,
        **{name: None if side is None else jnp.asarray(side) for name, side in sides.items()},
    )


@pytest.mark.parametrize("groups", [1, 3, 4])  # one part, two of different sizes, two halves
@pytest.mark.parametrize(
    ("bits", "codebook", "permuted"), [(4, False, True), (4, True, False), (8, False, True), (5, True, False)]
)
def test_any_number_of_groups_is_multiplied_as_it_is_stored(bits, codebook, permuted, groups):
    size = groups * GROUP
    host = weight(bits, 24, size, codebook=codebook, permuted=permuted)
    x = np.random.default_rng(0).standard_normal((5, size)).astype(np.float32)
    stored = on_device(host)
    ready = prepare(stored, WeightRole.LINEAR)
    assert isinstance(ready, TransposedWeight)
    for mine in (stored, ready):
        np.testing.assert_allclose(linear(jnp.asarray(x), mine), array_ops.linear(x, host), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("role", [WeightRole.EMBEDDING, WeightRole.TIED_EMBEDDING])
@pytest.mark.parametrize(("bits", "codebook", "permuted"), [(4, False, True), (4, True, False), (8, False, False)])
def test_rows_of_a_table_are_those_that_were_stored(bits, codebook, permuted, role):
    host = weight(bits, 50, 96, codebook=codebook, permuted=permuted)
    ids = np.array([49, 0, 7, 7], np.int32)
    rows = embedding(jnp.asarray(ids), prepare(on_device(host), role))
    np.testing.assert_allclose(rows, array_ops.embedding(ids, host), rtol=1e-6)


@pytest.mark.parametrize(("bits", "per_byte"), [(4, 2), (8, 1)])
def test_a_tpu_never_holds_the_dequantized_matrix(bits, per_byte, monkeypatch):
    pytest.importorskip("libtpu", reason="the compiler of TPUs is not installed")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    there = jax.sharding.SingleDeviceSharding(chip)
    size, rows = 2048, 32

    def form(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=there)

    def multiplied(x, codes, scales, offsets):
        return linear(x, TransposedWeight(codes, scales, offsets, bits, GROUP))

    scales = form((size // GROUP, size), jnp.bfloat16)
    arguments = (form((rows, size), jnp.bfloat16), form((size // per_byte, size), jnp.uint8), scales, scales)
    compiled = jax.jit(multiplied).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < size * size // 8
