"""Blocks of a paged cache copied over each other, the kernel interpreted on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo.backend import UnsupportedError
from octavo_xla.kernels import copy_blocks as kernel
from octavo_xla.kernels.copy_blocks import copy_blocks
from octavo_xla.kv import LANES, PagedKV

from .steps import EIGHT_BITS

BLOCKS, LAYERS = 24, 2
PADDING = ((0, 0), (0, 0), (0, 0))
OVERLAPPING = ((5, 6), (6, 7), (7, 5), (5, 9), (23, 11), *PADDING)
"""A ring, in which each target is a source; one source twice; the last block; and padding."""


def caches(dtype: str) -> list[PagedKV]:
    """Layers of different random contents."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(LAYERS):
        data = jnp.asarray(rng.standard_normal((BLOCKS, 2, 32, 2 * LANES)) * 30).astype(dtype)
        scales = jnp.asarray(rng.standard_normal((BLOCKS, 4, LANES)), jnp.float32) if dtype in EIGHT_BITS else None
        layers.append(PagedKV(data, scales, LANES))
    return layers


def copied(kv: Sequence[PagedKV], pairs: Sequence[tuple[int, int]], interpret: Any = True) -> list[PagedKV]:
    source, target = (jnp.asarray(side, jnp.int32) for side in zip(*pairs, strict=True))
    return copy_blocks(kv, source, target, interpret=interpret)


def check(before: Sequence[PagedKV], after: Sequence[PagedKV], pairs: Sequence[tuple[int, int]]) -> None:
    """Each target has what its source had, and no other block has changed: bit by bit, data and scales."""
    origin = np.arange(BLOCKS)
    for source, target in pairs:
        origin[target] = source
    for layer, changed in zip(before, after, strict=True):
        for was, came in ((layer.data, changed.data), (layer.scales, changed.scales)):
            if was is not None:
                assert np.asarray(came).tobytes() == np.asarray(was)[origin].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *EIGHT_BITS])
def test_pairs_that_overlap_are_all_read_before_any_is_written(dtype: str) -> None:
    kv = caches(dtype)
    check(kv, copied(kv, OVERLAPPING), OVERLAPPING)


def test_more_pairs_than_copies_that_are_under_way_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "IN_FLIGHT", 4)
    blocks = np.random.default_rng(1).permutation(np.arange(1, BLOCKS))
    pairs = list(zip(blocks.tolist(), np.roll(blocks, 1).tolist(), strict=True))
    kv = caches("int8")
    check(kv, copied(kv, pairs), pairs)


def test_padding_alone_copies_nothing() -> None:
    kv = caches("bfloat16")
    check(kv, copied(kv, PADDING), PADDING)


def test_more_pairs_than_scalar_memory_holds_are_refused_with_the_most_that_fit() -> None:
    pairs = jax.ShapeDtypeStruct((70_000,), jnp.int32)
    with pytest.raises(UnsupportedError, match=r"At most 65,536 blocks .* not 70,000"):
        jax.eval_shape(lambda source, target: copy_blocks([], source, target), pairs, pairs)
