"""Writes to the cache take the donated pool over, and numbers of eight bits say what they cannot hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo.backend import AttentionMetadata
from octavo_xla.kv import PagedKV, scale_shape
from octavo_xla.ops import scaled_kv
from octavo_xla.ops.attention import paged_attention
from octavo_xla.ops.cache import copy_blocks, write_kv

BLOCKS, KV_HEADS, BLOCK, SIZE = 64, 2, 16, 32
CACHES = ("float32", "bfloat16", "int8", "float8_e4m3fn", "float8_e5m2")


def pool(dtype: str) -> tuple[jax.Array, jax.Array | None]:
    data = jnp.zeros((BLOCKS, KV_HEADS, BLOCK, 2 * SIZE), dtype)
    eight_bits = jnp.dtype(dtype).itemsize == 1
    return data, jnp.zeros((BLOCKS, 2 * KV_HEADS, BLOCK), jnp.float32) if eight_bits else None


def written(data, scales, k, v, slots):
    kv = write_kv(PagedKV(data, scales, SIZE), k, v, slots)
    return kv.data, kv.scales


def copied(data, scales, source, target):
    (kv,) = copy_blocks([PagedKV(data, scales, SIZE)], source, target)
    return kv.data, kv.scales


def assert_in_place(program, dtype: str, *arguments: jax.Array) -> None:
    data, scales = pool(dtype)
    compiled = jax.jit(program, donate_argnums=(0, 1)).lower(data, scales, *arguments).compile()
    held = data.nbytes + (0 if scales is None else scales.nbytes)
    assert compiled.memory_analysis().alias_size_in_bytes == held
    shape = ",".join(map(str, data.shape))
    copies = [line for line in compiled.as_text().splitlines() if " copy(" in line and f"[{shape}]" in line]
    assert copies == []
    before = data.unsafe_buffer_pointer()
    assert compiled(data, scales, *arguments)[0].unsafe_buffer_pointer() == before


@pytest.mark.parametrize("dtype", CACHES)
def test_write_kv_takes_over_the_donated_pool_and_copies_none_of_it(dtype):
    k = jnp.ones((5, KV_HEADS, SIZE))
    assert_in_place(written, dtype, k, k, jnp.array([3, 700, 18, 0, 0], jnp.int32))


@pytest.mark.parametrize("dtype", CACHES)
def test_copy_blocks_takes_over_the_donated_pool_and_copies_none_of_it(dtype):
    assert_in_place(copied, dtype, jnp.array([1, 2, 0], jnp.int32), jnp.array([2, 3, 0], jnp.int32))


def test_lanes_beyond_the_values_are_left_alone():
    data = jnp.full((BLOCKS, KV_HEADS, BLOCK, 128), 7.0)
    k = jnp.ones((1, KV_HEADS, SIZE))
    kv = write_kv(PagedKV(data, None, SIZE), k, 2 * k, jnp.array([BLOCK + 3], jnp.int32))
    row = np.asarray(kv.data)[1, 1, 3]
    assert (row[:SIZE] == 1).all()
    assert (row[SIZE : 2 * SIZE] == 2).all()
    assert (row[2 * SIZE :] == 7).all()
    assert (np.asarray(kv.data) != 7).sum() == KV_HEADS * 2 * SIZE


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
def test_a_head_of_eight_bits_has_a_scale_of_its_own(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, SIZE)) * np.array([1e-20, 1.0, 3e20])[:, None]
    codes, scales = scaled_kv.encode(jnp.asarray(x, jnp.float32), jnp.dtype(dtype))
    assert float(jnp.max(jnp.abs(codes.astype(jnp.float32)))) == scaled_kv.largest_number(jnp.dtype(dtype))
    back = np.asarray(codes, np.float64) * np.asarray(scales, np.float64)[..., None]
    largest = np.abs(x).max(axis=-1, keepdims=True)
    assert (np.abs(back - x) <= largest * {"int8": 2**-7, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}[dtype]).all()


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
def test_a_head_of_zeros_is_zero_and_one_that_is_not_finite_is_seen(dtype):
    x = jnp.zeros((3, SIZE)).at[1, 5].set(jnp.inf).at[2, 0].set(jnp.nan)
    codes, scales = scaled_kv.encode(x, jnp.dtype(dtype))
    assert scales[0] == 1.0
    assert (codes[0].astype(jnp.float32) == 0).all()
    assert np.isnan(scales[1:]).all()


def test_rows_and_entries_of_scales_beyond_the_heads_and_the_block_are_left_alone():
    """As a TPU's caches have them: what is written is read back by the plain operations all the same."""
    data = jnp.zeros((BLOCKS, 3, BLOCK, 128), jnp.int8)
    scales = jnp.full((BLOCKS, *scale_shape(3, BLOCK, padded=True)), 7.0)
    k, slots = jax.random.normal(jax.random.key(0), (5, 3, SIZE)), jnp.arange(BLOCK, BLOCK + 5)
    kv = write_kv(PagedKV(data, scales, SIZE), k, 2 * k, slots)
    assert (np.asarray(kv.scales) != 7).sum() == 5 * 2 * 3
    starts, one = jnp.array([0, 1]), jnp.ones(1, jnp.int32)
    meta = AttentionMetadata(5 * one - 1, slots[-1:], 0 * one, starts, 5 * one, one[:, None], decode_only=True)
    found = paged_attention(k[-1:], kv, meta, 1.0)
    plain = PagedKV(jnp.zeros((BLOCKS, 3, BLOCK, 2 * SIZE)), None, SIZE)
    expected = paged_attention(k[-1:], write_kv(plain, k, 2 * k, slots), meta, 1.0)
    np.testing.assert_allclose(found, expected, atol=0.1)
