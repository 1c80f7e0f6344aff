"""A device's KV cache in which everything that was not written is garbage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.backend import Device, DType, KVLayout, LayerKV
from octavo_conformance.hostile.batch import Batch, Chunk, assemble
from octavo_conformance.hostile.garbage import garbage

_SLOTS_PER_WRITE = 2048
"""Slots that garbage is written to in one call, which bounds its size."""


class HostileCache:
    """A KV cache as a request meets it that is not the first: each slot, the null block's too, holds NaN or large
    numbers until it is written.

    It knows no layout: everything goes through `write_kv`, `copy_blocks` and `paged_attention`. Use one at a time: a
    device may plan attention for the cache that it allocated last.

    layers: the device's cache, to be handed to operations and rebound to what they return.
    dtype: the compute dtype of garbage and of reading; the cache's own where the device computes in that.
    nan: whether there is NaN in the garbage.
    Raises what `Device.allocate_kv` raises.
    """

    def __init__(
        self,
        device: Device,
        layout: KVLayout,
        blocks: int,
        rng: np.random.Generator,
        dtype: DType | None = None,
        *,
        nan: bool = True,
    ) -> None:
        self.device = device
        self.layout = layout
        self.blocks = blocks
        self.dtype = dtype or _compute_dtype(device, layout.dtype)
        # Fewer NaN among the keys: a running maximum may pass over a NaN score, and not over a large one.
        self._shares_of_nan = (0.25, 0.5) if nan else (0.0, 0.0)
        self._rng = rng
        self.layers: list[LayerKV] = list(device.allocate_kv(layout, blocks))
        self.poison(range(blocks))

    def poison(self, blocks: Iterable[int]) -> None:
        """Fill whole blocks with garbage, in every layer."""
        size = self.layout.block_size
        starts = np.fromiter(blocks, np.int32)[:, None] * np.int32(size)
        slots = (starts + np.arange(size, dtype=np.int32)).reshape(-1).astype(np.int32)
        for layer in range(self.layout.layers):
            for start in range(0, len(slots), _SLOTS_PER_WRITE):
                some = slots[start : start + _SLOTS_PER_WRITE]
                shape = (len(some), self.layout.kv_heads, self.layout.head_size)
                k, v = (garbage(self._rng, shape, self.dtype, self.layout.dtype, nan) for nan in self._shares_of_nan)
                self.write(layer, k, v, some)

    def write(self, layer: int, k: np.ndarray, v: np.ndarray, slots: NDArray[np.int32]) -> None:
        """`write_kv`: k, v [tokens, kv_heads, head_size] of a compute dtype, slots int32 [tokens]."""
        upload = self.device.upload
        # Copies: the device may keep a view of what it is given, and callers pass slices of what they still use.
        arrays = (upload(np.array(array, order="C")) for array in (k, v, np.asarray(slots, np.int32)))
        self.layers[layer] = self.device.ops.write_kv(self.layers[layer], *arrays)

    def write_sequence(self, layer: int, batch: Batch, sequence: int, k: np.ndarray, v: np.ndarray) -> None:
        """All tokens of one sequence of a batch. k, v [context, kv_heads, head_size]."""
        self.write(layer, k, v, batch.slots(sequence, np.arange(len(k))))

    def read_values(self, layer: int, slots: NDArray[np.int32] | Sequence[int]) -> np.ndarray:
        """The values of slots [n, kv_heads, head_size], n at least 1, in the dtype of reading, whatever they hold.

        Attention over a window of one token is that token's value, whatever the query: softmax of one score is 1.
        """
        size = self.layout.block_size
        chunks = [Chunk(context=int(slot) % size + 1, queries=1) for slot in slots]
        return self._read(layer, chunks, [(int(slot) // size,) for slot in slots])

    def read_blocks(self, layer: int, blocks: Sequence[int]) -> np.ndarray:
        """The values of all slots of blocks [len(blocks) * block_size, kv_heads, head_size], as `read_values`.

        They are one prompt, which is far fewer attention tiles than a sequence for each slot. No slot of the blocks may
        hold NaN: a tile's rows share its products, and each row sees one of its values and multiplies the others by 0.
        """
        tokens = len(blocks) * self.layout.block_size
        return self._read(layer, [Chunk(tokens, tokens)], [tuple(blocks)])

    def attend(self, layer: int, batch: Batch, q: np.ndarray, scale: float) -> np.ndarray:
        """`paged_attention` of a batch. q [tokens, heads, head_size], padding included -> the same shape."""
        staged = self.device.stage(batch.inputs)
        result = self.device.ops.paged_attention(self.device.upload(q), self.layers[layer], staged.attention, scale)
        # A copy, since a download may be a view of memory that is used again.
        return np.array(self.device.download(result))

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """`copy_blocks`: block source[i] to target[i] in every layer."""
        indices = (self.device.upload(np.array(blocks, np.int32)) for blocks in (source, target))
        self.layers = list(self.device.ops.copy_blocks(self.layers, *indices))

    def _read(self, layer: int, chunks: Sequence[Chunk], tables: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Attention of every query over a window of its own token alone."""
        kv_heads, size = self.layout.kv_heads, self.layout.head_size
        heads = self.layout.query_heads or kv_heads
        batch = assemble(chunks, tables, self.layout.block_size, num_blocks=self.blocks)
        staged = self.device.stage(batch.inputs)
        q = self.device.upload(np.zeros((batch.tokens, heads, size), self.dtype.numpy))
        read = self.device.ops.paged_attention(q, self.layers[layer], staged.attention, 1.0, window=1)
        # The first query head of each KV head; a copy, since a download may be a view of memory that is used again.
        return np.array(self.device.download(read)[:, :: heads // kv_heads])


def _compute_dtype(device: Device, kv_dtype: DType) -> DType:
    claimed = device.info.capabilities.dtypes
    return kv_dtype if kv_dtype in claimed else claimed[0]
