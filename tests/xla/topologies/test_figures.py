"""What is read of programs over a KV cache of eight bits, whose scales count as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs that are not there, is not installed")

import jax.numpy as jnp
from topologies.chips import CHIPS
from topologies.compiling import AheadOfTime
from topologies.device import TopologyDevice
from topologies.figures import Figures, read_figures

from octavo.backend import DType, KVLayout
from octavo.planning import CachePlan

from .small_programs import compiled

LAYOUT = KVLayout(layers=1, kv_heads=8, head_size=64, block_size=64, dtype=DType.INT8, windows=(None,), query_heads=8)
BLOCKS = 4096


def figures(program: Callable[..., Any]) -> Figures:
    """Of a program that is given data and scales of one layer to keep."""
    device = TopologyDevice(CHIPS["v5e"], 1, AheadOfTime("v5e:2x2", lambda fingerprint: False))
    kv = device.allocate_kv(LAYOUT, BLOCKS)
    plan = CachePlan(LAYOUT, BLOCKS, device.kv_block_bytes(LAYOUT), max_model_len=64)
    return read_figures(compiled(program, kv[0].data, kv[0].scales, donated=(0, 1)), 0.0, plan, kv)


def test_a_cache_that_keeps_its_place_is_aliased_to_the_byte_and_not_copied() -> None:
    came = figures(lambda data, scales: (data.at[3, 0, 0, 0].set(1), scales.at[3, 0, 0].set(1.0)))
    assert came.copies == ()
    assert came.aliased == BLOCKS * (8 * 64 * 128 + 4 * 16 * 128)


def test_a_copy_of_the_entries_is_seen_although_the_scales_take_memory_beside_them() -> None:
    came = figures(lambda data, scales: (jnp.where(data > 0, data * 2, data), scales.at[3, 0, 0].set(1.0)))
    assert len(came.copies) == 1


def test_a_copy_of_the_scales_is_seen_although_they_are_smaller_than_the_entries() -> None:
    came = figures(lambda data, scales: (data.at[3, 0, 0, 0].set(1), jnp.where(scales > 0, scales * 2, scales)))
    assert len(came.copies) == 1
