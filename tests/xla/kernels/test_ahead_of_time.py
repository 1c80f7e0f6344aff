"""The kernels compiled for TPUs that are not there: what Mosaic takes, and that the pool of blocks is never copied."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from octavo.backend import AttentionMetadata
from octavo_xla.kernels.attention import attention as public
from octavo_xla.kernels.attention import paged_attention
from octavo_xla.kernels.attention.sizes import TileSizes
from octavo_xla.kernels.copy_blocks import copy_blocks
from octavo_xla.kernels.write_kv import write_kv
from octavo_xla.kv import PagedKV, row_lanes, scale_shape

BLOCKS = 2048
TOKENS, SEQUENCES, WIDTH, GROUP, PAIRS = 128, 16, 64, 4, 8

SHAPES = {
    "bfloat16": {"kv_heads": 4, "head_size": 128, "block_size": 32, "dtype": "bfloat16", "kv_dtype": "bfloat16"},
    "float32": {"kv_heads": 1, "head_size": 64, "block_size": 16, "dtype": "float32", "kv_dtype": "float32"},
    "int8": {"kv_heads": 2, "head_size": 64, "block_size": 32, "dtype": "bfloat16", "kv_dtype": "int8"},
    "three heads": {"kv_heads": 3, "head_size": 64, "block_size": 32, "dtype": "bfloat16", "kv_dtype": "int8"},
    "float8": {"kv_heads": 2, "head_size": 128, "block_size": 64, "dtype": "bfloat16", "kv_dtype": "float8_e4m3fn"},
}


class Arrays:
    """Shapes of arrays on a device that is not there."""

    def __init__(self, device: Any, kv_heads: int, head_size: int, block_size: int, dtype: str, kv_dtype: str) -> None:
        self.on = SingleDeviceSharding(device)
        self.head_size, self.kv_heads = head_size, kv_heads
        self.data = self(kv_dtype, BLOCKS, kv_heads, block_size, row_lanes(head_size, padded=True))
        scaled = jnp.dtype(kv_dtype).itemsize == 1
        scales = scale_shape(kv_heads, block_size, padded=True)
        self.scales = self("float32", BLOCKS, *scales) if scaled else None
        self.side = self(dtype, TOKENS, kv_heads, head_size)
        self.q = self(dtype, TOKENS, kv_heads * GROUP, head_size)
        tokens, sequences = self("int32", TOKENS), self("int32", SEQUENCES)
        starts, tables = self("int32", SEQUENCES + 1), self("int32", SEQUENCES, WIDTH)
        self.meta = (tokens, tokens, tokens, starts, sequences, tables)

    def __call__(self, dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=self.on)

    def attention(self, decode_only: bool = False, **options: Any) -> Any:
        """The compiled program."""

        def attend(q: jax.Array, data: jax.Array, scales: jax.Array | None, meta: tuple[jax.Array, ...]) -> jax.Array:
            kv = PagedKV(data, scales, self.head_size)
            return paged_attention(q, kv, AttentionMetadata(*meta, decode_only=decode_only), 0.1, **options)

        return jax.jit(attend).lower(self.q, self.data, self.scales, self.meta).compile()

    def write(self) -> Any:
        """The compiled program, which is given the cache to keep."""

        def write(
            data: jax.Array, scales: jax.Array | None, k: jax.Array, v: jax.Array, slots: jax.Array
        ) -> tuple[jax.Array, jax.Array | None]:
            kv = write_kv(PagedKV(data, scales, self.head_size), k, v, slots)
            return kv.data, kv.scales

        arguments = (self.data, self.scales, self.side, self.side, self.meta[0])
        return jax.jit(write, donate_argnums=(0, 1)).lower(*arguments).compile()

    def copy(self) -> Any:
        """The compiled program, which is given the cache to keep."""

        def copy(
            data: jax.Array, scales: jax.Array | None, source: jax.Array, target: jax.Array
        ) -> tuple[jax.Array, jax.Array | None]:
            (kv,) = copy_blocks([PagedKV(data, scales, self.head_size)], source, target)
            return kv.data, kv.scales

        pairs = self("int32", PAIRS)
        return jax.jit(copy, donate_argnums=(0, 1)).lower(self.data, self.scales, pairs, pairs).compile()


def copies_of_the_cache(compiled: Any) -> list[str]:
    """Instructions that copy an array of as many entries as the pool has blocks."""
    lines = compiled.as_text().splitlines()
    return [line.strip() for line in lines if re.search(rf"\[{BLOCKS},.* copy(-start)?\(", line)]


def assert_in_place(arrays: Arrays, compiled: Any, kernels: int) -> None:
    """It updates the cache that it is given, by so many kernels and nothing else."""
    cache = sum(array.size * array.dtype.itemsize for array in (arrays.data, arrays.scales) if array is not None)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache // 8
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == kernels
    assert not copies_of_the_cache(compiled)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_compiles_and_the_pool_stays_where_it_is(tpu: Callable[[str], Any], shape: str) -> None:
    compiled = Arrays(tpu("v5e"), **SHAPES[shape]).attention(window=100, softcap=30.0)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2  # single tokens, and tiles
    assert not copies_of_the_cache(compiled)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_write_compiles_and_is_in_place(tpu: Callable[[str], Any], shape: str) -> None:
    arrays = Arrays(tpu("v5e"), **SHAPES[shape])
    assert_in_place(arrays, arrays.write(), kernels=1 if arrays.scales is None else 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_copies_of_blocks_compile_and_are_in_place(tpu: Callable[[str], Any], shape: str) -> None:
    arrays = Arrays(tpu("v5e"), **SHAPES[shape])
    assert_in_place(arrays, arrays.copy(), kernels=1)


@pytest.mark.parametrize("generation", ["v5p", "v6e"])
def test_later_generations_compile_too(tpu: Callable[[str], Any], generation: str) -> None:
    arrays = Arrays(tpu(generation), **SHAPES["float8"])
    assert not copies_of_the_cache(arrays.attention(decode_only=True, cores=2))
    assert_in_place(arrays, arrays.write(), kernels=2)
    assert_in_place(arrays, arrays.copy(), kernels=1)


def test_scales_that_would_fit_vmem_are_not_brought_there(tpu: Callable[[str], Any]) -> None:
    """XLA would do so on a v6e, which has 128 MiB: there and back in every step."""
    arrays = Arrays(tpu("v6e"), **SHAPES["float8"])

    def write(layers: list[tuple[Any, ...]], side: jax.Array, slots: jax.Array) -> list[tuple[Any, ...]]:
        written = []
        for data, scales in layers:
            side = side * 2
            kv = write_kv(PagedKV(data, scales, arrays.head_size), side, side, slots)
            written.append((kv.data, kv.scales))
        return written

    layers = [(arrays.data, arrays.scales)] * 4
    compiled = jax.jit(write, donate_argnums=0).lower(layers, arrays.side, arrays.meta[0]).compile()
    assert not copies_of_the_cache(compiled)


def test_a_kernel_over_its_vmem_does_not_compile(tpu: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "tile_sizes", lambda geometry, tokens: TileSizes(1, 256, 8))
    with pytest.raises(Exception, match=r"vmem|VMEM"):
        Arrays(tpu("v5e"), **SHAPES["bfloat16"]).attention(decode_only=True)
