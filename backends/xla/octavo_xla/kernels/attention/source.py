"""Where a kernel's keys and values come from: blocks copied from HBM, some chunks ahead of the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from octavo_xla.kernels.attention.sizes import Geometry, TileSizes
from octavo_xla.kernels.attention.work import WorkList
from octavo_xla.kernels.tiling import Ref


@dataclass(frozen=True, slots=True)
class Buffers:
    """Scratch memory of the copies.

    chunks [buffers, kv_heads, keys, lanes] in the cache's dtype. arrived: a semaphore a buffer.
    cursor int32 [4], SMEM: the next item, its chunk and the buffer to fetch; and the buffer to work on next.
    scales float32 [buffers, blocks, rows, lanes], scale_rows [rows, keys]: None without scales.
    """

    chunks: Ref
    arrived: Ref
    cursor: Ref
    scales: Ref | None = None
    scale_rows: Ref | None = None

    @staticmethod
    def shapes(geometry: Geometry, sizes: TileSizes) -> list[Any]:
        """What to allocate, in the order of the fields."""
        heads, keys = geometry.kv_heads, sizes.blocks * geometry.block_size
        shapes: list[Any] = [
            pltpu.VMEM((sizes.buffers, heads, keys, geometry.lanes), geometry.kv_dtype),
            pltpu.SemaphoreType.DMA((sizes.buffers,)),
            pltpu.SMEM((4,), jnp.int32),
        ]
        if geometry.scale_shape:
            shapes.append(pltpu.VMEM((sizes.buffers, sizes.blocks, *geometry.scale_shape), jnp.float32))
            shapes.append(pltpu.VMEM((geometry.scale_shape[0], keys), jnp.float32))
        return shapes


@dataclass(frozen=True, slots=True)
class Source:
    """The chunks of keys and values of each item.

    tables int32 [sequences * width], SMEM. data, scales: the cache of the layer, HBM.
    """

    geometry: Geometry
    sizes: TileSizes
    work: WorkList
    tables: Ref
    width: int
    data: Ref
    scales: Ref | None
    buffers: Buffers

    @property
    def keys(self) -> int:
        """Keys of a chunk."""
        return self.sizes.blocks * self.geometry.block_size

    def first_key(self, item: jax.Array, chunk: jax.Array | int) -> jax.Array:
        """The position of a chunk's first key. Chunks start at the block of the first key that is attended to."""
        size = self.geometry.block_size
        return lax.div(self.work.keys_from[item], size) * size + chunk * self.keys

    def chunks(self, item: jax.Array) -> jax.Array:
        """How many an item has."""
        return pl.cdiv(self.work.keys_to[item] - self.first_key(item, 0), self.keys)

    def open(self, item: jax.Array, end: jax.Array) -> None:
        """Start the first copies of a core whose items are item .. end - 1."""
        cursor = self.buffers.cursor
        cursor[0] = item
        for entry in range(1, 4):
            cursor[entry] = 0
        for _ in range(self.sizes.buffers - 1):
            self.fetch(end)

    def fetch(self, end: jax.Array) -> None:
        """Start the copies of the next chunk that was not fetched yet, of whichever item before `end`."""
        cursor = self.buffers.cursor
        item, chunk, buffer = cursor[0], cursor[1], cursor[2]

        def start() -> None:
            self._each_block(item, chunk, buffer, lambda copy: copy.start())
            done = chunk + 1 == self.chunks(item)
            cursor[0] = jnp.where(done, item + 1, item)
            cursor[1] = jnp.where(done, 0, chunk + 1)
            cursor[2] = lax.rem(buffer + 1, self.sizes.buffers)

        pl.when(item < end)(start)

    def receive(self, item: jax.Array, chunk: jax.Array) -> jax.Array:
        """Wait for a chunk; its buffer, which is free for a later chunk once the next one is received."""
        cursor = self.buffers.cursor
        buffer = cursor[3]
        cursor[3] = lax.rem(buffer + 1, self.sizes.buffers)
        self._each_block(item, chunk, buffer, lambda copy: copy.wait())
        self._line_up_scales(buffer)
        first = self.first_key(item, chunk)
        self._clear(buffer, self.work.keys_from[item] - first, self.work.keys_to[item] - first)
        return buffer

    def keys_and_values(self, buffer: jax.Array, head: int) -> tuple[jax.Array, jax.Array]:
        """[keys, width] each; one and the same where zeros in the queries keep them apart (`Geometry.split`)."""
        size, dtype = self.geometry.head_size, self.geometry.product_dtype
        if self.geometry.split:
            keys = self.buffers.chunks[buffer, head, :, :size]
            values = self.buffers.chunks[buffer, head, :, size : 2 * size]
            return keys.astype(dtype), values.astype(dtype)
        rows = self.buffers.chunks[buffer, head].astype(dtype)
        if 2 * size < self.geometry.lanes:  # what fills a row up may be anything, NaN included
            lane = lax.broadcasted_iota(jnp.int32, rows.shape, 1)
            rows = jnp.where(lane < 2 * size, rows, jnp.zeros_like(rows))
        return rows, rows

    def scales_of(self, head: int) -> tuple[jax.Array, jax.Array] | None:
        """Of the received chunk's keys and of its values, float32 [1, keys] each."""
        rows = self.buffers.scale_rows
        return None if rows is None else (rows[2 * head : 2 * head + 1], rows[2 * head + 1 : 2 * head + 2])

    def _each_block(self, item: jax.Array, chunk: jax.Array, buffer: jax.Array, do: Callable[[Any], None]) -> None:
        """`do` the copies of a chunk: of the blocks that hold a key that is attended to, and no others."""
        size, held = self.geometry.block_size, self.buffers
        first = lax.div(self.first_key(item, chunk), size)
        count = jnp.minimum(pl.cdiv(self.work.keys_to[item], size) - first, self.sizes.blocks)
        entry = self.work.sequence[item] * self.width + first

        def one(index: jax.Array, _: None) -> None:
            block, arrived = self.tables[entry + index], held.arrived.at[buffer]
            keys = pl.ds(pl.multiple_of(index * size, size), size)
            do(pltpu.make_async_copy(self.data.at[block], held.chunks.at[buffer, :, keys], arrived))
            if self.scales is not None and held.scales is not None:
                do(pltpu.make_async_copy(self.scales.at[block], held.scales.at[buffer, index], arrived))

        lax.fori_loop(0, count, one, None)

    def _line_up_scales(self, buffer: jax.Array) -> None:
        """A chunk's scales in one row. They come block by block, since a copy cannot end within a row of lanes."""
        held, size = self.buffers, self.geometry.block_size
        if held.scales is None or held.scale_rows is None:
            return
        for index in range(self.sizes.blocks):
            held.scale_rows[:, index * size : (index + 1) * size] = held.scales[buffer, index, :, :size]

    def _clear(self, buffer: jax.Array, attended_from: jax.Array, attended_to: jax.Array) -> None:
        """Zeros in the slots of a chunk that no query attends to: they were never copied, or hold what nobody owns, and
        0 * NaN is NaN. Only a sequence's first and last chunk have such slots."""
        held = self.buffers

        def attended(shape: tuple[int, ...], axis: int) -> jax.Array:
            key = lax.broadcasted_iota(jnp.int32, shape, axis)
            return (key >= attended_from) & (key < attended_to)

        def clear() -> None:
            for head in range(self.geometry.kv_heads):
                rows = held.chunks[buffer, head]
                held.chunks[buffer, head] = jnp.where(attended(rows.shape, 0), rows, jnp.zeros_like(rows))
            if held.scale_rows is not None:
                scales = held.scale_rows[...]
                held.scale_rows[...] = jnp.where(attended(scales.shape, 1), scales, 0.0)

        pl.when((attended_from > 0) | (attended_to < self.keys))(clear)
