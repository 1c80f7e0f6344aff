"""Faults of what a backend says of itself, and of memory, the KV cache as it is allocated, and shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.backend import (
    AttentionMetadata,
    BackendError,
    BackendUnavailableError,
    Collectives,
    DeviceConfig,
    DType,
    Kernel,
    KVCache,
    KVLayout,
    MemoryInfo,
    Ops,
    Probe,
    QuantizedWeight,
    Weight,
    WeightRole,
)
from octavo_conformance.case import Level
from octavo_wrong import fault
from octavo_wrong.device import WrongDevice
from octavo_wrong.fault import Fault, in_device

Array = Any

FAST = "fast"


def faults() -> Iterator[Fault]:
    yield in_device("version", device=ApiVersionOfTomorrow, api_version=2)
    yield in_device("probe", device=ProbedAndNotOpened)
    yield in_device("probe", device=ProbeOpensDevice, probe=_opening_probe)
    yield in_device("kernels", device=KernelListedAndAbsent, probe=_two_kernels)
    yield in_device("kernels", device=KernelReplaced, probe=_two_kernels)
    yield in_device("kernels", device=UnknownKernelTaken, probe=_no_kernels)
    yield in_device("capabilities", device=DefaultDtypeUnclaimed)
    for device in (
        KVDtypeClaimedAndAbsent,
        KVDtypeTakenUnclaimed,
        BlockSizeClaimedAndAbsent,
        HeadSizesClaimedAndAbsent,
        CacheBeyondMemory,
        CacheOneLayerShort,
        QueryHeadsRequired,
    ):
        yield in_device("kv_cache", device=device)
    yield in_device("paged_attention", Level.OPS, device=WindowLayersShort)
    yield in_device("linear", Level.OPS, device=BitsClaimedAndAbsent)
    yield in_device("linear", Level.OPS, device=BitsClaimedAndWrong)
    for device in (FreeIsConstant, TotalBeyondHost, FreeBeyondTotal, BlockBytesTooSmall, BlockBytesOfOneLayer):
        yield in_device("memory", device=device)
    yield in_device("close", device=CloseIsForAll)
    yield in_device("collectives", device=ShardsNotSummed)


# ----------------------------------------------------------------------------------------------- version and probe


class ApiVersionOfTomorrow(WrongDevice):
    """The backend says that it was written for version 2 of the contract."""


class ProbedAndNotOpened(WrongDevice):
    """The probe finds a device, and open() fails."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        raise BackendUnavailableError("the driver is too old")


class ProbeOpensDevice(WrongDevice):
    """The probe opens the device to see what is there."""


def _opening_probe() -> Probe:
    return replace(fault.probe(), devices=(WrongDevice(DeviceConfig(), "probed").info.arch,))


class KernelListedAndAbsent(WrongDevice):
    """The probe lists a kernel as available that open() refuses."""


class KernelReplaced(WrongDevice):
    """A kernel that the probe lists is asked for, and another one runs in its place."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(replace(config, kernel="auto"), name)


def _two_kernels() -> Probe:
    right = fault.probe()
    return replace(right, kernels=(*right.kernels, Kernel(FAST, True, "the matrix unit is there")))


class UnknownKernelTaken(WrongDevice):
    """A kernel that does not exist is asked for, and the device opens with the one it has."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(replace(config, kernel="auto"), name)


def _no_kernels() -> Probe:
    return replace(fault.probe(), kernels=())


# ------------------------------------------------------------------------------------------------------ capabilities


class DefaultDtypeUnclaimed(WrongDevice):
    """The default dtype is not among the dtypes that are claimed."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self.claim(dtypes=(DType.FLOAT32,), default_dtype=DType.BFLOAT16)


class KVDtypeClaimedAndAbsent(WrongDevice):
    """A float8 KV cache is claimed, and its allocation fails."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self.claim(kv_dtypes=(*self.info.capabilities.kv_dtypes, DType.FLOAT8_E4M3))


class KVDtypeTakenUnclaimed(WrongDevice):
    """A KV cache of a dtype that is not claimed is allocated in float32 instead."""

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        known = layout.dtype in self.info.capabilities.kv_dtypes
        return super().allocate_kv(layout if known else replace(layout, dtype=DType.FLOAT32), blocks)


class BlockSizeClaimedAndAbsent(WrongDevice):
    """Blocks of 256 slots are claimed, and refused."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self.claim(block_sizes=(*self.info.capabilities.block_sizes, 256))

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        if layout.block_size > 128:
            raise BackendError("A block has at most 128 slots.")
        return super().allocate_kv(layout, blocks)


class HeadSizesClaimedAndAbsent(WrongDevice):
    """Any head size is claimed, and those that are no multiple of 16 are refused."""

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        if layout.head_size % 16:
            raise BackendError("A head size is a multiple of 16.")
        return super().allocate_kv(layout, blocks)


class CacheBeyondMemory(WrongDevice):
    """A KV cache that cannot fit is promised, as the operating system promises memory until it is touched."""

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        asked = blocks * layout.block_bytes
        return [] if asked > self.memory().free else super().allocate_kv(layout, blocks)


class CacheOneLayerShort(WrongDevice):
    """A KV cache of several layers lacks the last one."""

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        return super().allocate_kv(replace(layout, layers=max(1, layout.layers - 1)), blocks)


class WindowLayersShort(WrongDevice):
    """A layer with a window gets as many blocks as one window needs, and slots are taken modulo that."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self.ops = _Wrapping()

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        kv = list(super().allocate_kv(layout, blocks))
        for index, window in enumerate(layout.windows):
            if window is not None:
                few = min(blocks, 2 - (-window // layout.block_size))
                kv[index] = np.ascontiguousarray(kv[index][:, :few])
        return kv


class _Wrapping(Ops):
    def write_kv(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        return super().write_kv(kv, k, v, slots % (kv.shape[1] * kv.shape[2]))

    def paged_attention(self, q: Array, kv: Array, meta: AttentionMetadata, *rest: Any, **named: Any) -> Array:
        wrapped = replace(meta, block_tables=meta.block_tables % kv.shape[1])
        return super().paged_attention(q, kv, wrapped, *rest, **named)

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        for layer in kv:
            super().copy_blocks([layer], source % layer.shape[1], target % layer.shape[1])
        return kv


class QueryHeadsRequired(WrongDevice):
    """A layout that does not say how many query heads there are is refused."""

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        if not layout.query_heads:
            raise BackendError("The number of query heads is needed to plan attention.")
        return super().allocate_kv(layout, blocks)


class BitsClaimedAndAbsent(WrongDevice):
    """3-bit weights are claimed and refused."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self.ops = _NoThreeBits()


class _NoThreeBits(Ops):
    def linear(self, x: Array, weight: Weight) -> Array:
        if isinstance(weight, QuantizedWeight) and weight.bits == 3:
            raise BackendError("There is no kernel for 3 bits.")
        return super().linear(x, weight)


class BitsClaimedAndWrong(WrongDevice):
    """5-bit weights are claimed, and their highest bit is lost."""

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        if isinstance(weight, QuantizedWeight) and weight.bits == 5:
            return replace(weight, codes=weight.codes & np.uint8(15))
        return weight


# ------------------------------------------------------------------------------------------------- memory and shards


class FreeIsConstant(WrongDevice):
    """memory().free is what was free when the device was opened."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self._at_first = super().memory()

    def memory(self) -> MemoryInfo:
        return self._at_first


class TotalBeyondHost(WrongDevice):
    """The total counts the host's memory twice."""

    def memory(self) -> MemoryInfo:
        right = super().memory()
        return replace(right, total=2 * right.total)


class FreeBeyondTotal(WrongDevice):
    """More is free than there is."""

    def memory(self) -> MemoryInfo:
        right = super().memory()
        return replace(right, free=right.total + 1)


class BlockBytesTooSmall(WrongDevice):
    """kv_block_bytes counts the keys and forgets the values."""

    def kv_block_bytes(self, layout: KVLayout) -> int:
        return layout.block_bytes // 2


class BlockBytesOfOneLayer(WrongDevice):
    """kv_block_bytes counts one layer."""

    def kv_block_bytes(self, layout: KVLayout) -> int:
        return layout.block_bytes // layout.layers


class CloseIsForAll(WrongDevice):
    """close() takes the library down for all devices of the process."""

    _open: list[WrongDevice] = []  # noqa: RUF012  # shared by all of them: that is the fault

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self._open.append(self)

    def download(self, array: Array) -> np.ndarray:
        if self not in self._open:
            raise RuntimeError("the library was shut down")
        return super().download(array)

    def close(self) -> None:
        self._open.clear()


class _Shards(Collectives):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class ShardsNotSummed(WrongDevice):
    """Two shards are claimed, and each keeps its own part of a sum."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(replace(config, tensor_parallel_size=1), name)
        self.claim(max_tensor_parallel=2)
        self.collectives = _Shards(config.rank, config.tensor_parallel_size)
