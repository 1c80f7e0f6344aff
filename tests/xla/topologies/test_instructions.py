"""What is read from a compiled program, of real ones: copies, communication and kernels are seen, and only they."""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs that are not there, is not installed")

from topologies.instructions import Program, read_program

from octavo_xla.mesh import AXIS

from .small_programs import compiled, matrix, mesh, pool

BLOCKS = 4096
ENTRIES = prod(pool(BLOCKS, mesh()).shape)


def written(kv: Any, rows: Any) -> Any:
    return kv.at[jnp.arange(4), :, 0].set(rows)


def rows() -> Any:
    return jnp.ones((4, 8, 128), jnp.bfloat16)


def program(function: Any, *arguments: Any, donated: tuple[int, ...] = (0,)) -> Program:
    return read_program(compiled(function, *arguments, donated=donated).as_text())


def test_a_cache_that_is_donated_and_updated_in_place_is_not_copied() -> None:
    found = program(lambda kv: written(kv, rows()), pool(BLOCKS, mesh()))
    assert found.copies({ENTRIES}) == ()


def test_a_cache_that_is_not_donated_is_seen_to_be_copied() -> None:
    found = program(lambda kv: written(kv, rows()), pool(BLOCKS, mesh()), donated=())
    assert any(copy.startswith("copy") for copy in found.copies({ENTRIES}))


def test_a_cache_that_is_made_anew_by_a_fusion_is_seen_to_be_copied() -> None:
    found = program(lambda kv: jnp.where(kv > 0, kv * 2, kv), pool(BLOCKS, mesh()))
    assert any(copy.startswith("fusion") for copy in found.copies({ENTRIES}))


def test_each_sum_over_chips_is_counted() -> None:
    on = mesh(size=4)

    def shard(x: Any) -> Any:
        once = jnp.tanh(jax.lax.psum(x @ x, AXIS))
        twice = jnp.tanh(jax.lax.psum(once @ x, AXIS))
        return jax.lax.all_gather(twice, AXIS, axis=1, tiled=True)

    everywhere = PartitionSpec()
    whole = jax.shard_map(shard, mesh=on.mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)
    found = program(whole, matrix(1024, 1024, on), donated=())
    assert (found.count("all-reduce"), found.count("all-gather"), found.count("all-to-all")) == (2, 1, 0)


def test_kernels_are_counted_by_name() -> None:
    def double(x: Any, out: Any) -> None:
        out[...] = x[...] * 2

    def twice(x: Any) -> Any:
        for _ in range(2):
            x = pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), name="doubled_8")(x)
        return x

    assert program(twice, matrix(256, 256, mesh())).kernels() == {"doubled": 2}
