"""What a step writes into a paged cache, the kernel interpreted on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo_xla.kernels.runs import run_list
from octavo_xla.kernels.write_kv import write_kv
from octavo_xla.kv import PagedKV, row_lanes

from .steps import EIGHT_BITS

BLOCKS = 24
PROMPT = (*range(37, 97), 250, 251, 200, 0, 0, 0)
"""A prompt that starts and ends within a block, two decodes that share a block, another, and padding."""


@dataclass(frozen=True, slots=True)
class Written:
    """A cache before and after: all by slot."""

    before: NDArray[Any]  # [slots, kv_heads, lanes]
    after: NDArray[Any]
    scales: NDArray[np.float32] | None  # [slots, kv_heads, 2]
    sides: NDArray[np.float32]  # [tokens, kv_heads, 2, head_size], what was to be written


def write(
    slots: Sequence[int],
    dtype: str,
    *,
    block_size: int = 16,
    kv_heads: int = 2,
    head_size: int = 64,
    interpret: Any = True,
    entries: NDArray[np.float32] | None = None,
) -> Written:
    """Random keys and values, or `entries`, into a cache of random contents."""
    rng, lanes = np.random.default_rng(0), row_lanes(head_size, padded=True)
    data = jnp.asarray(rng.standard_normal((BLOCKS, kv_heads, block_size, lanes)) * 30).astype(dtype)
    scales = jnp.zeros((BLOCKS, 2 * kv_heads, block_size), jnp.float32) if dtype in EIGHT_BITS else None
    sides = rng.standard_normal((len(slots), kv_heads, 2, head_size)).astype(np.float32)
    sides = sides if entries is None else entries

    def call(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        kv = write_kv(PagedKV(data, scales, head_size), k, v, jnp.asarray(slots, jnp.int32), interpret=interpret)
        return kv.data, kv.scales

    after, after_scales = jax.jit(call)(jnp.asarray(sides[:, :, 0]), jnp.asarray(sides[:, :, 1]))
    by_slot = [np.asarray(array).swapaxes(1, 2).reshape(-1, kv_heads, lanes) for array in (data, after)]
    rows = None
    if after_scales is not None:
        rows = np.asarray(after_scales).swapaxes(1, 2).reshape(-1, kv_heads, 2)
    return Written(by_slot[0], by_slot[1], rows, sides)


def check(written: Written, slots: Sequence[int], block_size: int, head_size: int = 64) -> None:
    """Each token is in its slot, to the cache's precision, and no other slot has changed. The null block's may have."""
    where = np.asarray(slots)
    real = where >= block_size
    others = np.setdiff1d(np.arange(block_size, len(written.before)), where[real])
    assert written.after[others].tobytes() == written.before[others].tobytes()
    stored = written.after[where[real]].astype(np.float32)[..., : 2 * head_size]
    stored = stored.reshape(*stored.shape[:2], 2, head_size)
    right, dtype = written.sides[real], written.after.dtype
    if written.scales is None:
        np.testing.assert_array_equal(stored, right.astype(dtype).astype(np.float32))
        return
    scales = written.scales[where[real]]
    largest = EIGHT_BITS[dtype.name]
    np.testing.assert_allclose(scales, np.abs(right).max(-1) / largest, rtol=1e-6)
    entries = right / scales[..., None]
    entries = entries.round() if dtype == np.int8 else entries.astype(dtype).astype(np.float32)
    # A quotient that lies between two entries may be rounded to either.
    assert np.mean(stored != entries) < 0.01
    step = {"int8": 1 / 127, "float8_e4m3fn": 1 / 8, "float8_e5m2": 1 / 4}[dtype.name]
    assert np.abs(stored * scales[..., None] - right).max() <= step * np.abs(right).max()


@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *EIGHT_BITS])
def test_each_token_is_in_its_slot_and_nothing_else_has_changed(dtype: str, block_size: int) -> None:
    check(write(PROMPT, dtype, block_size=block_size), PROMPT, block_size)


@pytest.mark.parametrize("shape", [(1, 128), (3, 80), (2, 8)], ids=str)
def test_any_shape_of_heads(shape: tuple[int, int]) -> None:
    written = write(PROMPT, "bfloat16", kv_heads=shape[0], head_size=shape[1])
    check(written, PROMPT, 16, head_size=shape[1])


@pytest.mark.parametrize("count", [40, 300])
def test_tokens_in_any_order_over_more_blocks_than_there_are_buffers(count: int) -> None:
    """300 tokens are two tiles, which write to the same blocks one after the other."""
    slots = np.random.default_rng(1).permutation(np.arange(16, BLOCKS * 16))[:count].tolist()
    check(write(slots, "bfloat16", kv_heads=1), slots, 16)


def test_a_step_of_padding_alone_writes_nothing() -> None:
    written = write([0] * 8, "bfloat16")
    assert written.after[16:].tobytes() == written.before[16:].tobytes()


@pytest.mark.parametrize("dtype", list(EIGHT_BITS))
def test_heads_that_no_scale_fits_are_told_apart(dtype: str) -> None:
    """Zeros have scale 1; what is not finite has scale NaN, and so no reader takes it for a number."""
    sides = np.ones((3, 2, 2, 64), np.float32)
    sides[0, 0, 0] = 0.0
    sides[1, 1, 1, 7] = np.inf
    sides[2, 0, 1, 3] = np.nan
    scales = write([40, 90, 200], dtype, block_size=32, entries=sides).scales
    assert scales is not None
    assert scales[40, 0, 0] == 1.0
    assert np.argwhere(np.isnan(scales)).tolist() == [[90, 1, 1], [200, 0, 1]]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 160), min_size=16, max_size=16))
def test_runs_cover_each_token_once_and_a_group_is_listed_once(drawn: list[int]) -> None:
    seen: set[int] = set()
    slots = [slot if slot >= 32 and not (slot in seen or seen.add(slot)) else 0 for slot in drawn]  # type: ignore[func-returns-value]
    runs = run_list(jnp.asarray(slots, jnp.int32), 16, 32, 8)
    first_run, count = np.asarray(runs.first_run)[0], int(runs.groups[0])
    came: dict[int, int] = {}
    groups = []
    for group in range(count):
        members = range(first_run[group], first_run[group + 1])
        places = {int(runs.slot[0, run]) // 8 for run in members}
        assert len(places) == 1
        groups += places
        for run in members:
            for step in range(int(runs.length[0, run])):
                came[int(runs.token[0, run]) + step] = int(runs.slot[0, run]) + step
    assert len(set(groups)) == count
    assert came == {token: slot for token, slot in enumerate(slots) if slot}
