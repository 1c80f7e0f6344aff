"""A hostile cache beside what it has to hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.backend import DType, KVLayout
from octavo_conformance.cases.ops.attention_step import ROUNDED
from octavo_conformance.cases.ops.operation import HostArray, numbers
from octavo_conformance.hostile.batch import Chunk, assemble
from octavo_conformance.hostile.cache import HostileCache
from octavo_conformance.oracles.attention import attention
from octavo_conformance.workbench import CaseFailure, Workbench

Int32Array = NDArray[np.int32]


class Mirror:
    """Every slot's key and value on the host, in every layer, kept in step with the device's cache.

    A slot that was never written is known by what was read from it at first, and has to go on holding that: no one
    wrote to it. The null block is left out: it may hold anything.

    dtype: the compute dtype of what is written and of the queries that read it.
    """

    def __init__(self, bench: Workbench, layout: KVLayout, blocks: int, dtype: DType) -> None:
        self.bench, self.layout, self.blocks, self.dtype = bench, layout, blocks, dtype
        self.cache = HostileCache(bench.device, layout, blocks, bench.rng, dtype, nan=False)
        shape = (layout.layers, blocks * layout.block_size, layout.kv_heads, layout.head_size)
        self._keys = np.zeros(shape, layout.dtype.numpy if layout.dtype in ROUNDED else dtype.numpy)
        self._values = np.zeros_like(self._keys)
        self._written = np.zeros(shape[:2], np.bool_)
        self._at_first = np.stack([self.cache.read_blocks(layer, range(blocks)) for layer in range(layout.layers)])

    def fill(self, blocks: Sequence[int], length: int | None = None) -> None:
        """Write new tokens to the first `length` slots of blocks (all, without it), in every layer."""
        slots = self.slots(blocks, length)
        for layer in range(self.layout.layers):
            k, v = self.tokens(len(slots))
            order = self.bench.rng.permutation(len(slots))
            self.cache.write(layer, k[order], v[order], slots[order])
            self.note(layer, k, v, slots)

    def slots(self, blocks: Sequence[int], length: int | None = None) -> Int32Array:
        """The first `length` slots of each block (all, without it)."""
        offsets = np.arange(self.layout.block_size if length is None else length)
        return (np.asarray(blocks)[:, None] * self.layout.block_size + offsets).astype(np.int32).reshape(-1)

    def tokens(self, count: int) -> tuple[HostArray, HostArray]:
        """Keys and values [count, kv_heads, head_size] in the compute dtype."""
        shape = (count, self.layout.kv_heads, self.layout.head_size)
        return numbers(self.bench, shape, self.dtype), numbers(self.bench, shape, self.dtype)

    def note(self, layer: int, k: HostArray, v: HostArray, slots: Int32Array) -> None:
        """The device wrote these. Rounded to the nearest number of the cache's dtype."""
        self._keys[layer, slots] = k.astype(self._keys.dtype)
        self._values[layer, slots] = v.astype(self._values.dtype)
        self._written[layer, slots] = True

    def note_copies(self, source: Sequence[int], target: Sequence[int]) -> None:
        """The device copied block source[i] to target[i] in every layer, all of them read first."""
        read, write = self.slots(source), self.slots(target)
        for side in (self._keys, self._values, self._written, self._at_first):
            side[:, write] = side[:, read]

    def check(self, op: str, inputs: str, extra: float = 0.0) -> None:
        """Raises CaseFailure where a slot of any layer does not hold what it has to.

        extra: what is added to the tolerance of the keys, which are seen through attention only.
        """
        for layer in range(self.layout.layers):
            where = f"{inputs}; layer {layer} of {self.layout.layers}"
            self._check_values(op, layer, where)
            self._check_keys(op, layer, where, extra)

    def _check_values(self, op: str, layer: int, inputs: str) -> None:
        slots = np.arange(self.layout.block_size, self._written.shape[1], dtype=np.int32)
        got = self.cache.read_blocks(layer, range(1, self.blocks))
        written = self._written[layer, slots]
        expected = np.where(
            written[:, None, None], self._values[layer, slots].astype(self.dtype.numpy), self._at_first[layer, slots]
        )
        if self.layout.dtype not in ROUNDED:
            tolerance = self.bench.tolerances.of("kv_cache", self.layout.dtype)
            self.bench.measure(
                op, self.dtype, got[written], expected[written], f"{inputs}; values as read back", tolerance
            )
            got, expected, slots, written = (side[~written] for side in (got, expected, slots, written))
        same = np.all((got == expected) | ((got != got) & (expected != expected)), axis=(1, 2))
        if not np.all(same):
            raise CaseFailure(self._wrong_slots(op, inputs, slots[~same], written[~same]))

    def _wrong_slots(self, op: str, inputs: str, slots: Int32Array, written: NDArray[np.bool_]) -> str:
        block, offset = divmod(int(slots[0]), self.layout.block_size)
        fault = (
            "does not hold the value that was written to it" if written[0] else "was changed, and no one wrote to it"
        )
        return (
            f"{op}: the values of {len(slots)} slots are wrong, read by attention with a window of 1 ({inputs}). The "
            f"first is slot {slots[0]} (block {block}, offset {offset}), which {fault}."
        )

    def _check_keys(self, op: str, layer: int, inputs: str, extra: float) -> None:
        """Keys show in the weights of attention: blocks whose first slots are known, in contexts of one or two."""
        tables, chunks = self._contexts(layer)
        if not tables:
            return
        heads, size = self.layout.query_heads or self.layout.kv_heads, self.layout.head_size
        batch = assemble(chunks, tables, self.layout.block_size, num_blocks=self.blocks)
        q, scale = numbers(self.bench, (batch.tokens, heads, size), self.dtype), size**-0.5
        got = self.cache.attend(layer, batch, q, scale)
        expected = np.empty(q.shape)
        for sequence, chunk in enumerate(chunks):
            rows, slots = batch.rows(sequence), batch.slots(sequence, np.arange(chunk.context))
            expected[rows] = attention(q[rows], self._keys[layer, slots], self._values[layer, slots], scale)
        of = self.bench.tolerances.of
        extra += of("paged_attention", self.dtype) + of("kv_cache", self.layout.dtype)
        self.bench.measure(op, self.dtype, got, expected, f"{inputs}; keys as attention sees them", extra)

    def _contexts(self, layer: int) -> tuple[list[tuple[int, ...]], list[Chunk]]:
        """Block tables over written slots, and the last queries of each, which see all of them; single ones first."""
        size = self.layout.block_size
        lengths = np.argmin(np.pad(self._written[layer].reshape(-1, size), ((0, 0), (0, 1))), axis=1)
        full = [block for block in range(1, self.blocks) if lengths[block] == size]
        found = [(tuple(full[at : at + 2]), size * len(full[at : at + 2])) for at in range(0, len(full), 2)]
        for block in range(1, self.blocks):
            if 0 < lengths[block] < size:
                found.append(((*full[:1], block), size * len(full[:1]) + int(lengths[block])))
        found.sort(key=lambda one: one[1] > 1)
        return [table for table, _ in found], [Chunk(context, min(3, context)) for _, context in found]
