"""Memory figures, and the KV cache as something that is allocated, refused, and covered by `kv_block_bytes`."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import psutil

from octavo.backend import (
    AttentionMetadata,
    Device,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
    MemoryInfo,
    StepInputs,
    UnsupportedError,
)
from octavo_conformance.case import Case
from octavo_conformance.workbench import CaseFailure, Workbench

_MIB = 1 << 20
_ATTEMPTS = 3
_AGREEING = 2  # measurements of memory that others move too
_TOKENS = 8192  # that are written at a time
_SOME_HEAD_SIZES = (1, 8, 33, 64, 80, 96, 128, 192, 256, 320, 512)  # of a device that takes any


def cases() -> Iterator[Case]:
    yield Case("contract/memory/figures", _figures, quick=True)
    yield Case("contract/memory/free_falls", _free_falls, quick=True, limit=120.0)
    yield Case("contract/memory/block_bytes", _block_bytes, quick=True)
    yield Case("contract/memory/block_bytes_cover_the_cache", _block_bytes_cover, quick=True, limit=120.0)
    yield Case("contract/kv_cache/layers", _layers, quick=True)
    yield Case("contract/kv_cache/claimed_block_sizes", _claimed_block_sizes, quick=True)
    yield Case("contract/kv_cache/claimed_head_sizes", _claimed_head_sizes, quick=True)
    yield Case("contract/kv_cache/claimed_dtypes", _claimed_dtypes, quick=True)
    yield Case("contract/kv_cache/unclaimed_dtypes_are_refused", _unclaimed_dtypes_are_refused, quick=True)
    yield Case("contract/kv_cache/hints", _hints, quick=True)
    yield Case("contract/kv_cache/out_of_memory", _out_of_memory, quick=True)


# ---------------------------------------------------------------------------------------------------------- figures


def _figures(bench: Workbench) -> None:
    memory = bench.device.memory()
    bench.require(isinstance(memory, MemoryInfo), f"memory() returned a {type(memory).__name__}, not a MemoryInfo.")
    for name in ("free", "total"):
        value = getattr(memory, name)
        bench.require(isinstance(value, int), f"memory().{name} is {value!r}; it is an integer, in bytes.")
    bench.require(
        0 < memory.free <= memory.total,
        f"memory() says that {memory.free:,} of {memory.total:,} bytes are free; free is above 0 and at most total.",
    )
    if memory.shared_with_host:
        host = psutil.virtual_memory().total
        bench.require(
            memory.total <= host,
            f"memory().total is {memory.total:,} bytes of the host's own memory, which is {host:,}.",
        )


def _free_falls(bench: Workbench) -> None:
    """Other users of the machine move the figure: one attempt of three has to show the fall."""
    layout = _layout(bench)
    held: list[KVCache] = []  # a device that keeps freed memory for itself must not serve one attempt from the last
    falls: list[int] = []
    for _ in range(_ATTEMPTS):
        size = _size(bench.device)
        before = _free(bench.device)
        held.append(_written(bench, layout, size // bench.device.kv_block_bytes(layout)))
        falls.append(before - _free(bench.device))
        if falls[-1] >= size // 2:
            return
    raise CaseFailure(
        f"A KV cache of {size:,} bytes was allocated and written, and memory().free fell by "
        f"{', '.join(f'{fall:,}' for fall in falls)} bytes in {_ATTEMPTS} attempts: it is what is free now."
    )


def _block_bytes(bench: Workbench) -> None:
    layout = _layout(bench)
    one = bench.device.kv_block_bytes(layout)
    bench.require(
        isinstance(one, int) and one > 0, f"kv_block_bytes is {one!r}; it is a positive number of bytes ({layout})."
    )
    deep = KVLayout(
        8, layout.kv_heads, layout.head_size, layout.block_size, layout.dtype, (None,) * 8, layout.query_heads
    )
    many = bench.device.kv_block_bytes(deep)
    bench.require(
        many > one, f"kv_block_bytes is {many:,} for 8 layers and {one:,} for one: it counts a block of every layer."
    )


def _block_bytes_cover(bench: Workbench) -> None:
    """The KV budget is divided by `kv_block_bytes`: a figure that is too small runs out of memory under load.

    What else the process takes or gives back meanwhile moves a measurement either way: two of three have to agree.
    """
    layout, device = _layout(bench), bench.device
    shared = device.memory().shared_with_host
    held: list[KVCache] = []
    above: list[int] = []
    below = 0
    while max(below, len(above)) < _AGREEING:
        blocks = _size(device) // device.kv_block_bytes(layout)
        promised = blocks * device.kv_block_bytes(layout)
        # Of the host's own memory this process's part is known exactly, whatever the others do.
        before = _resident() if shared else -_free(device)
        held.append(_written(bench, layout, blocks))
        taken = (_resident() if shared else -_free(device)) - before
        if taken > promised * 9 // 8 + 8 * _MIB:
            above.append(taken)
        else:
            below += 1
    bench.require(
        not above[_AGREEING - 1 :],
        f"A KV cache of {blocks:,} blocks takes {min(above, default=0):,} bytes, and kv_block_bytes promises "
        f"{promised:,}: it counts all that a block takes, padding included ({layout}).",
    )


def _size(device: Device) -> int:
    return min(128 * _MIB, device.memory().free // 8)


def _free(device: Device) -> int:
    gc.collect()
    return device.memory().free


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _written(bench: Workbench, layout: KVLayout, blocks: int) -> KVCache:
    """A cache whose every slot was written: memory that is not touched is often not taken."""
    device = bench.device
    kv = list(device.allocate_kv(layout, blocks))
    shape = (_TOKENS, layout.kv_heads, layout.head_size)
    k, v = (device.upload(np.ones(shape, bench.dtype.numpy)) for _ in range(2))
    last = blocks * layout.block_size - 1
    for start in range(0, last + 1, _TOKENS):
        # The last pass writes its last slot several times, always with the same values.
        slots = np.minimum(np.arange(start, start + _TOKENS, dtype=np.int32), np.int32(last))
        kv[0] = device.ops.write_kv(kv[0], k, v, device.upload(slots))
    _values(bench, kv, layout, 1)  # until it is done
    return kv


# --------------------------------------------------------------------------------------------------------- KV cache


def _layers(bench: Workbench) -> None:
    for layers in (1, 3):
        kv = bench.device.allocate_kv(_layout(bench, layers), 4)
        bench.require(
            len(kv) == layers, f"allocate_kv for {layers} layers returned {len(kv)} entries; it is one for each layer."
        )


def _claimed_block_sizes(bench: Workbench) -> None:
    for block_size in bench.capabilities.block_sizes:
        layout = KVLayout(1, 2, bench.head_size, block_size, bench.kv_dtype, (None,), 2)
        _check_holds(bench, layout, f"block size {block_size} is claimed")


def _claimed_head_sizes(bench: Workbench) -> None:
    claimed = bench.capabilities.head_sizes
    for head_size in _SOME_HEAD_SIZES if claimed is None else claimed:
        layout = KVLayout(1, 2, head_size, bench.block_size, bench.kv_dtype, (None,), 2)
        why = "any is claimed" if claimed is None else f"head size {head_size} is claimed"
        _check_holds(bench, layout, why)


def _claimed_dtypes(bench: Workbench) -> None:
    for dtype in bench.capabilities.kv_dtypes:
        layout = KVLayout(1, 2, bench.head_size, bench.block_size, dtype, (None,), 2)
        _check_holds(bench, layout, f"KV dtype {dtype.value} is claimed")


def _hints(bench: Workbench) -> None:
    """`windows` and `query_heads` may help a device, and may be unknown."""
    for windows in ((), (None,), (8,)):
        for query_heads in (0, 2, 6):
            layout = KVLayout(1, 2, bench.head_size, bench.block_size, bench.kv_dtype, windows, query_heads)
            _check_holds(bench, layout, f"the hints are windows {windows} and {query_heads} query heads")


def _unclaimed_dtypes_are_refused(bench: Workbench) -> None:
    for dtype in DType:
        if dtype in bench.capabilities.kv_dtypes:
            continue
        layout = KVLayout(1, 2, bench.head_size, bench.block_size, dtype, (None,), 2)
        try:
            bench.device.allocate_kv(layout, 4)
        except UnsupportedError as error:
            bench.require(str(error), f"A KV cache of {dtype.value} is refused without a sentence.")
            continue
        raise CaseFailure(
            f"A KV cache of {dtype.value}, which Capabilities.kv_dtypes does not claim, was allocated; it is refused "
            "with an UnsupportedError."
        )


def _out_of_memory(bench: Workbench) -> None:
    device = bench.device
    for layers in (1, 4):
        layout = _layout(bench, layers)
        total = device.memory().total
        blocks = 2 * total // device.kv_block_bytes(layout) + 1
        try:
            kv = device.allocate_kv(layout, blocks)
        except DeviceOutOfMemoryError as error:
            bench.require(str(error), "A KV cache that does not fit is refused without a sentence.")
        except Exception as error:
            raise CaseFailure(
                f"A KV cache of {layers} layers and twice the device's {total:,} bytes raised {type(error).__name__}: "
                f"{error}; it is refused with a DeviceOutOfMemoryError."
            ) from error
        else:
            del kv
            raise CaseFailure(
                f"A KV cache of {layers} layers and twice the device's {total:,} bytes was allocated; it is refused "
                "with a DeviceOutOfMemoryError, also where the system would promise the memory."
            )
        _check_holds(bench, _layout(bench), "a larger cache was refused before")


def _check_holds(bench: Workbench, layout: KVLayout, why: str) -> None:
    """A slot that is written is read back, in the cache's own rounding."""
    kv = list(bench.device.allocate_kv(layout, 4))
    values = bench.rng.standard_normal((1, layout.kv_heads, layout.head_size)).astype(bench.dtype.numpy)
    slot = np.array([3 * layout.block_size], np.int32)
    k, v = (bench.device.upload(values.copy()) for _ in range(2))
    kv[0] = bench.device.ops.write_kv(kv[0], k, v, bench.device.upload(slot))
    came = _values(bench, kv, layout, 3)
    extra = bench.tolerances.of("kv_cache", layout.dtype)
    rounded = values
    if layout.dtype in (DType.FLOAT16, DType.BFLOAT16):
        rounded = values.astype(np.float32).astype(layout.dtype.numpy)
    bench.check(
        "paged_attention",
        bench.dtype,
        came,
        rounded.astype(np.float64),
        f"a context of one token, head size {layout.head_size}, block size {layout.block_size}, cache "
        f"{layout.dtype.value}; {why}",
        extra,
    )


def _values(bench: Workbench, kv: KVCache, layout: KVLayout, block: int) -> np.ndarray:
    """The values of the first slot of a block: attention over a context of one token."""
    device = bench.device
    # A decode among static shapes is padded, like any other.
    rows = 8 if bench.capabilities.static_shapes else 1
    first, table = np.zeros(rows, np.int32), np.zeros((rows, rows), np.int32)
    table[0, 0] = block
    slots, lengths = first.copy(), first.copy()
    slots[0], lengths[0] = block * layout.block_size, 1
    starts = np.minimum(np.arange(rows + 1, dtype=np.int32), 1)
    meta = AttentionMetadata(first, slots, first.copy(), starts, lengths, table, decode_only=True)
    staged = device.stage(StepInputs(first.copy(), np.zeros(rows, np.int32), meta))
    q = device.upload(np.ones((rows, layout.kv_heads, layout.head_size), bench.dtype.numpy))
    return device.download(device.ops.paged_attention(q, kv[0], staged.attention, 1.0))[:1]


def _layout(bench: Workbench, layers: int = 1) -> KVLayout:
    heads = 8
    return KVLayout(
        layers, heads, bench.head_size, bench.block_size, bench.kv_dtype, (None,) * layers, query_heads=heads
    )
