"""The tiles that the kernels choose for themselves."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from octavo.backend import UnsupportedError
from octavo_xla.kernels.attention.sizes import SMALLEST, VMEM_BUDGET, Geometry, tile_sizes, vmem_bytes
from octavo_xla.kernels.write_kv import write_sizes
from octavo_xla.kv import PagedKV, row_lanes


def geometry(kv_heads: int, group: int, head_size: int, block_size: int, kv_dtype: str) -> Geometry:
    kv = np.dtype(jnp.dtype(kv_dtype))
    scales = (2 * kv_heads, block_size) if kv.itemsize == 1 else None
    lanes = row_lanes(head_size, padded=True)
    return Geometry(kv_heads, group, head_size, lanes, block_size, np.dtype(jnp.bfloat16), kv, scales)


def test_all_shapes_of_models_fit_and_leave_copies_on_their_way() -> None:
    heads = [(1, 1), (1, 8), (1, 16), (2, 7), (3, 3), (8, 4), (8, 8), (16, 2), (32, 1)]
    shapes = itertools.product(heads, (64, 80, 128, 256), (32, 128), ("bfloat16", "int8"))
    for (kv_heads, group), head_size, block_size, kv_dtype in shapes:
        shape = geometry(kv_heads, group, head_size, block_size, kv_dtype)
        for tokens in (1, 16, 512):
            sizes = tile_sizes(shape, tokens)
            assert vmem_bytes(shape, sizes) <= VMEM_BUDGET
            assert sizes.tokens <= tokens
            assert sizes.buffers >= SMALLEST.buffers


def test_a_smaller_budget_takes_away_buffers_first_then_keys_then_queries() -> None:
    shape = geometry(8, 4, 128, 16, "bfloat16")
    came = [tile_sizes(shape, 64, budget) for budget in (12 << 20, 4 << 20, 2 << 20, 1 << 20)]
    assert came == sorted(came, key=lambda sizes: (sizes.tokens, sizes.blocks, sizes.buffers), reverse=True)
    assert len(set(came)) == len(came)


def test_heads_that_do_not_fit_are_refused_with_what_helps() -> None:
    with pytest.raises(UnsupportedError, match=r"256 KV heads of 256 .* split the heads over more chips"):
        tile_sizes(geometry(256, 1, 256, 128, "bfloat16"), 1)
    data = jnp.zeros((1, 512, 16, 1024), jnp.float32)
    with pytest.raises(UnsupportedError, match=r"512 KV heads of 512 .* split the heads over more chips"):
        write_sizes(PagedKV(data, None, 512), 64)
