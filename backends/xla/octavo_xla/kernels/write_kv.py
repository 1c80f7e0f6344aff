"""`Ops.write_kv` by a Pallas kernel: in place, whatever XLA thinks of the pool's layout.

XLA's own scatter is in place for caches of 16 and 32 bits, row by row. For those of eight it wants another tiling than
the pool has and copies the pool twice, and what it makes of scales depends on the number of heads. Here a step's rows
are merged into the tiles of memory that hold them: each is read, merged and written once, with many copies in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from octavo.backend import UnsupportedError
from octavo_xla.kernels.runs import RunList, run_list
from octavo_xla.kernels.tiling import VMEM_LIMIT, Ref, packed_rows, round_up
from octavo_xla.kv import LANES, PagedKV
from octavo_xla.ops.scaled_kv import encode

VMEM_BUDGET = VMEM_LIMIT // 2
"""Bytes of VMEM for the rows to write (held twice: one tile is copied while one is worked on) and the buffers."""

TOKENS = 256
"""Tokens of a tile, where they fit: the pipeline of copies runs empty once a tile."""


@dataclass(frozen=True, slots=True)
class WriteSizes:
    """tokens: of a tile. height: slots of a group, the least that can be copied. buffers: groups in VMEM at a time."""

    tokens: int
    height: int
    buffers: int


def write_kv(kv: PagedKV, k: jax.Array, v: jax.Array, slots: jax.Array, *, interpret: Any = False) -> PagedKV:
    """`Ops.write_kv`. Rows for the null block are not written at all. The pool is updated in place where the caller
    gives it away (donation); otherwise XLA copies it first.
    """
    rows, scales = _encode(kv, k, v)
    sizes = write_sizes(kv, len(slots))
    slots = jnp.pad(slots, (0, round_up(len(slots), sizes.tokens) - len(slots)))
    kv = replace(kv, data=_run(kv.data, rows, slots, sizes, kv.block_size, interpret))
    if scales is None or kv.scales is None:
        return kv
    # A block's scales lie side by side in a row of lanes, so that a whole block is the least that can be copied.
    sizes = replace(sizes, height=kv.block_size, buffers=min(sizes.buffers, 8))
    columns = jnp.pad(scales, ((0, 0), (0, LANES - scales.shape[1])))[:, None]
    return replace(kv, scales=_run(kv.scales, columns, slots, sizes, kv.block_size, interpret))


def write_sizes(kv: PagedKV, tokens: int, budget: int = VMEM_BUDGET) -> WriteSizes:
    """Sizes within the budget. Raises UnsupportedError where not even the smallest fit."""
    height = min(packed_rows(np.dtype(kv.data.dtype)), kv.block_size)
    sizes = WriteSizes(min(TOKENS, round_up(tokens, 8)), height, buffers=32)
    while vmem_bytes(kv, sizes) > budget:
        if sizes.buffers > 4:
            sizes = replace(sizes, buffers=sizes.buffers // 2)
        elif sizes.tokens > 8:
            sizes = replace(sizes, tokens=round_up(sizes.tokens // 2, 8))
        else:
            raise UnsupportedError(
                f"Writing {kv.kv_heads} KV heads of {kv.head_size} takes {vmem_bytes(kv, sizes):,} bytes of a TPU's "
                f"VMEM, and {budget:,} are there: split the heads over more chips."
            )
    return sizes


def vmem_bytes(kv: PagedKV, sizes: WriteSizes) -> int:
    """Bytes of VMEM that a call takes. The kernel that writes scales, a call of its own, takes less."""
    row = int(kv.kv_heads * kv.data.shape[3])
    rows = 2 * (sizes.tokens + 2 * sizes.height) * row * 4
    groups = sizes.buffers * sizes.height * row * int(kv.data.dtype.itemsize)
    return rows + groups


def _encode(kv: PagedKV, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Rows in 32 bits, of which loads may start anywhere, [tokens, kv_heads, lanes]: float32 values, or the bits of a
    cache of eight in int32. And their scales, float32 [tokens, 2 * kv_heads]."""
    dtype = kv.data.dtype
    if kv.scales is None:
        rows, scales = jnp.concatenate([k, v], axis=-1).astype(jnp.float32), None
    else:
        sides, sizes = encode(jnp.stack([k, v], axis=2), dtype)  # [tokens, kv_heads, 2, head_size]
        bits = lax.bitcast_convert_type(sides, jnp.int8).astype(jnp.int32)
        rows, scales = bits.reshape(*k.shape[:2], -1), sizes.reshape(len(k), -1)
    return jnp.pad(rows, ((0, 0), (0, 0), (0, kv.data.shape[3] - rows.shape[2]))), scales


def _in_tiles(rows: jax.Array, sizes: WriteSizes) -> jax.Array:
    """[tokens, heads, lanes] -> [tiles, heads * parts, height + tile + height, LANES].

    A group's rows are taken from wherever its first token stands, so that a margin lies on either side; and a load from
    any row wants rows of a single tile, so that wider ones come in parts.
    """
    tokens, heads, lanes = rows.shape
    padded = round_up(tokens, sizes.tokens)
    rows = jnp.pad(rows, ((0, padded - tokens), (0, 0), (0, 0)))
    tiles = rows.reshape(-1, sizes.tokens, heads * lanes // LANES, LANES).transpose(0, 2, 1, 3)
    return jnp.pad(tiles, ((0, 0), (0, 0), (sizes.height, sizes.height), (0, 0)))


def _run(
    pool: jax.Array, rows: jax.Array, slots: jax.Array, sizes: WriteSizes, block_size: int, interpret: Any
) -> jax.Array:
    """rows [tokens, heads, lanes] into a pool of entries or of scales."""
    tiles, runs = _in_tiles(rows, sizes), run_list(slots, sizes.tokens, block_size, sizes.height)
    scalars = [array.reshape(-1) for array in runs]
    held = (pool.shape[1], sizes.height, pool.shape[3]) if pool.ndim == 4 else pool.shape[1:]

    def body(*refs: Ref) -> None:
        listed = RunList(*refs[: len(scalars)])
        fresh, _, target, buffer, read, written = refs[len(scalars) :]
        _write_tile(listed, fresh, Groups(listed, sizes, block_size, target, buffer, read, written))

    # In HBM also where all of it would fit VMEM (128 MiB on a v6e): XLA would bring it there and back in every step.
    updated = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(tiles.shape[0],),
            in_specs=[
                pl.BlockSpec((None, *tiles.shape[1:]), lambda tile, *_: (tile, 0, 0, 0)),
                pl.BlockSpec(memory_space=pltpu.HBM),
            ],
            out_specs=pl.BlockSpec(memory_space=pltpu.HBM),
            scratch_shapes=[
                pltpu.VMEM((sizes.buffers, *held), pool.dtype),
                pltpu.SemaphoreType.DMA((sizes.buffers,)),
                pltpu.SemaphoreType.DMA((sizes.buffers,)),
            ],
        ),
        out_shape=pltpu.HBM(pool.shape, pool.dtype),
        input_output_aliases={len(scalars) + 1: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="write_kv" if pool.ndim == 4 else "write_kv_scales",
    )(*scalars, tiles, pool)
    return lax.optimization_barrier(updated)  # without one XLA fails where this is all that a program returns


@dataclass(frozen=True, slots=True)
class Groups:
    """The copies of a tile's groups. Group g lives in buffer g % buffers from its read to the end of its write."""

    runs: RunList
    sizes: WriteSizes
    block_size: int
    pool: Ref  # [blocks, kv_heads, block_size, lanes] or scales [blocks, rows, lanes], HBM
    buffer: Ref  # [buffers, kv_heads, height, lanes] or [buffers, rows, lanes]
    read: Ref
    written: Ref

    def place(self, tile: jax.Array, group: jax.Array) -> tuple[Ref, jax.Array]:
        """Where in the pool a group lies, and its buffer."""
        height, buffer = self.sizes.height, lax.rem(group, self.sizes.buffers)
        run = self.runs.first_run[tile * (self.sizes.tokens + 1) + group]
        slot = self.runs.slot[tile * self.sizes.tokens + run]
        block = lax.div(slot, self.block_size)
        if len(self.pool.shape) == 3:
            return self.pool.at[block], buffer
        offset = pl.multiple_of(lax.div(lax.rem(slot, self.block_size), height) * height, height)
        return self.pool.at[block, :, pl.ds(offset, height)], buffer

    def reading(self, tile: jax.Array, group: jax.Array) -> Any:
        place, buffer = self.place(tile, group)
        return pltpu.make_async_copy(place, self.buffer.at[buffer], self.read.at[buffer])

    def writing(self, tile: jax.Array, group: jax.Array) -> Any:
        place, buffer = self.place(tile, group)
        return pltpu.make_async_copy(self.buffer.at[buffer], place, self.written.at[buffer])


def _write_tile(runs: RunList, rows: Ref, groups: Groups) -> None:
    """One step of the grid: half of the buffers read ahead while the other half is written back."""
    tile, sizes = pl.program_id(0), groups.sizes
    count, ahead = runs.groups[tile], sizes.buffers // 2

    def read_later(group: jax.Array) -> None:
        pl.when(group >= sizes.buffers)(lambda: groups.writing(tile, group - sizes.buffers).wait())
        groups.reading(tile, group).start()

    def one(group: jax.Array, _: None) -> None:
        pl.when(group + ahead < count)(lambda: read_later(group + ahead))
        groups.reading(tile, group).wait()
        buffer = lax.rem(group, sizes.buffers)

        def merge(run: jax.Array, _: None) -> None:
            entry = tile * sizes.tokens + run
            first_row = lax.rem(runs.slot[entry], sizes.height)
            write = _merge if len(groups.pool.shape) == 4 else _merge_scales
            write(rows, groups.buffer, sizes.height, buffer, runs.token[entry], first_row, runs.length[entry])

        entry = tile * (sizes.tokens + 1) + group
        lax.fori_loop(runs.first_run[entry], runs.first_run[entry + 1], merge, None)
        groups.writing(tile, group).start()

    lax.fori_loop(0, jnp.minimum(ahead, count), lambda group, _: groups.reading(tile, group).start(), None)
    lax.fori_loop(0, count, one, None)
    unfinished = jnp.maximum(count - sizes.buffers, 0)
    lax.fori_loop(unfinished, count, lambda group, _: groups.writing(tile, group).wait(), None)


def _merge(
    rows: Ref, groups: Ref, height: int, buffer: jax.Array, token: jax.Array, first_row: jax.Array, length: jax.Array
) -> None:
    """A run into its group: rows first_row .. first_row + length - 1 of the buffer become the tokens'."""
    _, heads, _, lanes = groups.shape
    parts = lanes // LANES
    row = lax.broadcasted_iota(jnp.int32, (height, LANES), 0)
    mine = (row >= first_row) & (row < first_row + length)
    for head in range(heads):
        for part in range(parts):
            fresh = rows[head * parts + part, pl.ds(token - first_row + height, height), :]
            at = (buffer, head, slice(None), slice(part * LANES, (part + 1) * LANES))
            groups[at] = jnp.where(mine, _narrow(fresh, groups.dtype), groups[at])


def _merge_scales(
    tokens: Ref, groups: Ref, height: int, buffer: jax.Array, token: jax.Array, first_row: jax.Array, length: jax.Array
) -> None:
    """As `_merge`, where a slot is a lane. A token's scales come as a row, since loads start at any row, and turn."""
    columns = jnp.transpose(tokens[0, pl.ds(token - first_row + height, height), :])[: groups.shape[1]]
    lane = lax.broadcasted_iota(jnp.int32, columns.shape, 1)
    mine = (lane >= first_row) & (lane < first_row + length)
    groups[buffer, :, :height] = jnp.where(mine, columns, groups[buffer, :, :height])


def _narrow(wide: jax.Array, dtype: np.dtype) -> jax.Array:
    """What `_encode` widened."""
    if wide.dtype == jnp.float32:
        return wide.astype(dtype)
    return lax.bitcast_convert_type(wide.astype(jnp.int8), dtype)
