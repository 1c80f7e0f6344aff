"""Paged attention against attention in float64 without pages, the kernel interpreted on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo.backend import UnsupportedError
from octavo_xla.kernels.attention import attention as public
from octavo_xla.kernels.attention import paged_attention
from octavo_xla.kernels.attention.sizes import TileSizes
from octavo_xla.kv import scale_shape

from .steps import Step, step

FLOAT32_ERROR = 1e-11  # normalised, mean squared, of the worst head
BFLOAT16_ERROR = 3e-5
MIXED = ((1, 1), (17, 1), (40, 40), (150, 33), (66, 2))
"""Contexts and queries: decodes, a prompt, the last chunk of one, and two tokens that were speculated."""


def run(call: Step, **options: Any) -> jax.Array:
    def attend(q: jax.Array) -> jax.Array:
        arguments = (call.scale, call.window, call.softcap, call.sinks)
        return paged_attention(q, call.kv, call.meta, *arguments, interpret=True, **options)

    return jax.jit(attend)(call.q)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 queries, chunks of 32 keys: short contexts have many of both."""

    def sizes(geometry: Any, tokens: int) -> TileSizes:
        return TileSizes(min(tokens, 16), max(1, 32 // geometry.block_size), 3)

    monkeypatch.setattr(public, "tile_sizes", sizes)


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 9, "kv_heads": 3, "head_size": 64},
        {"heads": 2, "kv_heads": 1, "head_size": 128},
        {"heads": 2, "kv_heads": 2, "head_size": 256, "block_size": 64},
        {"heads": 4, "kv_heads": 2, "head_size": 80, "block_size": 32},
        {"heads": 8, "kv_heads": 1, "head_size": 8, "block_size": 128},
    ],
    ids=lambda shape: "-".join(str(size) for size in shape.values()),
)
def test_mixed_batches_agree_with_attention_in_float64(shape: dict[str, int]) -> None:
    call = step(MIXED, **shape)
    assert call.error(run(call)) < FLOAT32_ERROR


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("window", [None, 1, 50])
@pytest.mark.parametrize("more", [{}, {"softcap": 1.5, "sinks": True}], ids=["plain", "capped"])
def test_many_tiles_and_many_chunks_agree_with_attention_in_float64(window: int | None, more: dict[str, Any]) -> None:
    call = step(MIXED, heads=2, kv_heads=1, window=window, **more)
    assert call.error(run(call)) < FLOAT32_ERROR


@pytest.mark.usefixtures("small_tiles")
def test_contexts_that_end_with_a_block_a_chunk_and_a_tile() -> None:
    decodes = [(length, 1) for length in (15, 16, 17, 31, 32, 33, 64)]
    prompts = [(16, 16), (32, 16), (31, 15), (33, 17), (64, 32), (2, 2)]
    call = step(decodes + prompts, heads=2, kv_heads=1)
    assert call.error(run(call)) < FLOAT32_ERROR


def test_a_batch_of_decodes_of_which_some_are_padding() -> None:
    call = step([(1, 1), (16, 1), (130, 1)], pad_tokens=5, pad_sequences=5, pad_blocks=7)
    assert call.meta.decode_only
    assert call.error(run(call)) < FLOAT32_ERROR


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("cores", [2, 3])
def test_cores_share_the_queries(cores: int) -> None:
    """Also where a core gets no item at all: the last ones have padding only."""
    call = step([(40, 1), (7, 1), (90, 37)], heads=2, kv_heads=1, pad_tokens=60, pad_sequences=6)
    assert call.error(run(call, cores=cores)) < FLOAT32_ERROR


def test_block_tables_that_exceed_scalar_memory_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    call = step(MIXED, heads=2, kv_heads=1)
    rows = call.meta.block_tables.shape[0]
    monkeypatch.setattr(public, "SMEM_TABLE_BYTES", 3 * 4 * call.meta.block_tables.shape[1])
    assert rows == 7  # three at a time: the parts have 3, 3 and 1
    assert call.error(run(call)) < FLOAT32_ERROR


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("kv_dtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
def test_caches_of_eight_bits_are_read_with_their_scales(kv_dtype: str, block_size: int) -> None:
    call = step(MIXED, heads=4, kv_heads=2, kv_dtype=kv_dtype, block_size=block_size, window=60)
    assert call.error(run(call)) < FLOAT32_ERROR


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_scales_may_have_more_rows_than_heads_and_longer_ones_than_a_block(kv_heads: int) -> None:
    """As they have on a TPU, which would keep less the other way round."""
    shape = scale_shape(kv_heads, 32, padded=True)
    call = step(MIXED, heads=2 * kv_heads, kv_heads=kv_heads, kv_dtype="int8", block_size=32, scale_shape=shape)
    assert call.kv.scales is not None
    assert call.kv.scales.shape[1:] == (8, 128)
    assert call.error(run(call)) < FLOAT32_ERROR


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_bfloat16_queries(kv_dtype: str) -> None:
    call = step(MIXED, dtype="bfloat16", kv_dtype=kv_dtype, block_size=32)
    came = run(call)
    assert came.dtype == jnp.bfloat16
    assert call.error(came) < BFLOAT16_ERROR


def test_a_nan_is_seen_by_its_own_sequence_alone() -> None:
    call = step([(20, 1), (30, 1), (40, 20), (50, 20)], heads=2, kv_heads=1)
    slot = int(call.batch.slots(2, [5])[0])
    data = call.kv.data.at[slot // 16, :, slot % 16].set(jnp.nan)
    broken = run(replace(call, kv=replace(call.kv, data=data)))
    seen = [bool(np.isnan(np.asarray(broken[call.batch.rows(sequence)])).any()) for sequence in range(4)]
    assert seen == [False, False, True, False]


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({"dtype": "float16"}, "takes bfloat16 and float32, not float16"),
        ({"kv_dtype": "float16"}, "reads KV caches of bfloat16, .*not of float16"),
        ({"block_size": 8}, "float32 caches in blocks of a multiple of 16 tokens"),
        ({"block_size": 16, "kv_dtype": "int8"}, "int8 caches in blocks of a multiple of 32 tokens"),
    ],
)
def test_what_the_kernel_does_not_take_is_one_sentence(shape: dict[str, Any], sentence: str) -> None:
    call = step([(5, 1)], **shape)
    with pytest.raises(UnsupportedError, match=sentence):
        run(call)
