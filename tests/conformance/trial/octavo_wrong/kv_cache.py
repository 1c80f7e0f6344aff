"""Faults of what is stored in the KV cache: `write_kv`, `rotary_write_kv` and `copy_blocks`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from octavo.backend import DeviceConfig, DType, KVCache, KVLayout, Ops, RotaryTable, StepInputs
from octavo_conformance.case import Level
from octavo_wrong.device import WrongDevice
from octavo_wrong.fault import Fault, in_device, in_ops
from octavo_wrong.plain import PlainAttention

Array = Any


def faults() -> Iterator[Fault]:
    yield from in_ops(
        "write_kv",
        PaddingWritesThrough,
        SlotsTakenAsRun,
        ValueHeadsReversed,
        KeysAndValuesSwapped,
        NeighboursCleared,
        OverwritesIgnored,
        SlotsInSixteenBits,
        ConversionTruncates,
    )
    yield in_device("write_kv", Level.OPS, BlocksRemembered)
    yield in_device("write_kv", Level.OPS, ByteCacheUnscaled)
    yield from in_ops("rotary_write_kv", FusedKeysNotRotated, FusedValuesRotated, FusedQueryNotRotated)
    yield from in_ops(
        "copy_blocks",
        CopiesNothing,
        CopiesKeysOnly,
        CopiesFirstLayerOnly,
        CopiesInSequence,
        CopiesFirstPairOnly,
        CopiesHalfBlocks,
        CopiesAtMostEight,
        CopiesBackwards,
    )
    yield in_device("copy_blocks", Level.OPS, CopiesLate)


# --------------------------------------------------------------------------------------------------------- write_kv


class PaddingWritesThrough(Ops):
    """The null block has no memory of its own: what is written to slot 0 lands in the first slot of block 1."""

    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        return super().write_kv(kv, k, v, np.where(slots == 0, np.int32(kv.shape[2]), slots))


class SlotsTakenAsRun(Ops):
    """Keys and values are stored side by side from the first slot on."""

    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        run = (slots[:1] + np.arange(len(slots), dtype=np.int32)) % (kv.shape[1] * kv.shape[2])
        return super().write_kv(kv, k, v, run)


class ValueHeadsReversed(Ops):
    """The KV heads of the values are stored in reverse order, those of the keys as they come."""

    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        return super().write_kv(kv, k, v[:, ::-1], slots)


class KeysAndValuesSwapped(Ops):
    """Keys are stored as values, and values as keys."""

    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        return super().write_kv(kv, v, k, slots)


class NeighboursCleared(Ops):
    """A write to the first slot of a block clears the rest of it, written before in the same step or not."""

    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        kv = super().write_kv(kv, k, v, slots)
        size = kv.shape[2]
        first = slots[(slots % size == 0) & (slots > 0)]
        alone = first[~np.isin(first + 1, slots)] // size
        kv[:, alone, 1:] = 0
        return kv


class OverwritesIgnored(Ops):
    """A slot that holds a finite key keeps it."""

    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        held = kv[0].reshape(-1, *kv.shape[3:])[slots].astype(np.float32)
        empty = ~np.isfinite(held).all(axis=(1, 2)) | (np.abs(held).max(axis=(1, 2)) > 1e4)
        return super().write_kv(kv, k[empty], v[empty], slots[empty])


class SlotsInSixteenBits(Ops):
    """Slots are kept in 16 bits: slot 65536 + n is written as slot n."""

    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        return super().write_kv(kv, k, v, slots & 0xFFFF)


class ConversionTruncates(Ops):
    """A bfloat16 cache cuts off the low bits of float32 keys and values instead of rounding them."""

    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        if kv.dtype == ml_dtypes.bfloat16 and k.dtype == np.float32:
            k, v = (np.bitwise_and(side.view(np.uint32), np.uint32(0xFFFF0000)).view(np.float32) for side in (k, v))
        return super().write_kv(kv, k, v, slots)


class BlocksRemembered(WrongDevice):
    """The first block of a sequence is gathered once and kept under its number: a new owner reads the old one's."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self.ops = _RememberingOps()

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        self.ops.remembered.clear()
        return super().allocate_kv(layout, blocks)


class _RememberingOps(PlainAttention):
    def __init__(self) -> None:
        self.remembered: dict[tuple[int, int], tuple[Array, Array]] = {}

    def gather(self, kv: Array, table: Array) -> tuple[Array, Array]:
        keys, values = super().gather(kv, table)
        size = kv.shape[2]
        if len(keys) > size:  # the first block is full, and so will not change while its owner lives
            where = (kv.__array_interface__["data"][0], int(table[0]))
            first = self.remembered.setdefault(where, (keys[:size].copy(), values[:size].copy()))
            keys[:size], values[:size] = first
        return keys, values


class ByteCacheUnscaled(WrongDevice):
    """A KV cache of int8 is claimed, and numbers are cut to integers without a scale."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self.claim(kv_dtypes=(*self.info.capabilities.kv_dtypes, DType.INT8))
        self.ops = _ByteOps()

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        if layout.dtype is not DType.INT8:
            return super().allocate_kv(layout, blocks)
        shape = (2, blocks, layout.block_size, layout.kv_heads, layout.head_size)
        return [np.zeros(shape, np.int8) for _ in range(layout.layers)]


class _ByteOps(Ops):
    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        if kv.dtype == np.int8:
            k, v = (np.clip(np.nan_to_num(side.astype(np.float32)), -128, 127) for side in (k, v))
        return super().write_kv(kv, k, v, slots)


# -------------------------------------------------------------------------------------------------- rotary_write_kv


class _FusedOps(Ops):
    """`rotary_write_kv` in one pass; `choose` says which of the rotated and the plain arrays are used."""

    def rotary_write_kv(
        self, q: Array, k: Array, v: Array, positions: Array, table: RotaryTable, kv: Array, slots: Array
    ) -> tuple[Array, Array]:
        turned = self.rotary(q, k, positions, table)
        q, k, v = self.choose((q, k, v), turned, self.rotary(v, v, positions, table)[0])
        return q, self.write_kv(kv, k, v, slots)

    def choose(self, plain: Array, turned: Array, turned_v: Array) -> tuple[Array, Array, Array]:
        raise NotImplementedError


class FusedKeysNotRotated(_FusedOps):
    """The fused write stores the keys as they were before the rotation."""

    def choose(self, plain: Array, turned: Array, turned_v: Array) -> tuple[Array, Array, Array]:
        return turned[0], plain[1], plain[2]


class FusedValuesRotated(_FusedOps):
    """The fused write rotates the values as well."""

    def choose(self, plain: Array, turned: Array, turned_v: Array) -> tuple[Array, Array, Array]:
        return turned[0], turned[1], turned_v


class FusedQueryNotRotated(_FusedOps):
    """The fused write returns q as it was."""

    def choose(self, plain: Array, turned: Array, turned_v: Array) -> tuple[Array, Array, Array]:
        return plain[0], turned[1], plain[2]


# ------------------------------------------------------------------------------------------------------ copy_blocks


class CopiesNothing(Ops):
    """copy_blocks returns the cache as it is."""

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        return kv


class CopiesKeysOnly(Ops):
    """copy_blocks leaves the values behind."""

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        for layer in kv:
            layer[0, target] = layer[0, source]
        return kv


class CopiesFirstLayerOnly(Ops):
    """copy_blocks copies in the first layer."""

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        super().copy_blocks(kv[:1], source, target)
        return kv


class CopiesInSequence(Ops):
    """Pairs are copied one after another: in a chain 1 -> 2, 2 -> 3 the third block gets what the first held."""

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        for pair in zip(source, target, strict=True):
            super().copy_blocks(kv, *(np.asarray([block]) for block in pair))
        return kv


class CopiesFirstPairOnly(Ops):
    """Of several pairs of blocks the first is copied."""

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        return super().copy_blocks(kv, source[:1], target[:1])


class CopiesHalfBlocks(Ops):
    """The second half of a block's slots is not copied."""

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        for layer in kv:
            half = (layer.shape[2] + 1) // 2
            layer[:, target, :half] = layer[:, source, :half]
        return kv


class CopiesAtMostEight(Ops):
    """Of more than eight pairs of blocks the first eight are copied."""

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        return super().copy_blocks(kv, source[:8], target[:8])


class CopiesBackwards(Ops):
    """Source and target change places."""

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        return super().copy_blocks(kv, target, source)


class CopiesLate(WrongDevice):
    """Copies go to a queue of their own and are done after the step that needs them."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self.ops = _QueuingOps()

    def stage(self, inputs: StepInputs) -> StepInputs:
        self.ops.do_those_due()
        return super().stage(inputs)


class _QueuingOps(Ops):
    def __init__(self) -> None:
        self._queued: list[tuple[KVCache, Array, Array]] = []
        self._due: list[tuple[KVCache, Array, Array]] = []

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        self._queued.append((kv, source, target))
        return kv

    def do_those_due(self) -> None:
        for copy in self._due:
            super().copy_blocks(*copy)
        self._due, self._queued = self._queued, []
