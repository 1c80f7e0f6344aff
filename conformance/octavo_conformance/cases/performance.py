"""Level performance: what the operations reach, beside the device's own copy bandwidth. Recorded, not judged.

Each case grows its work until one call takes `_LONG` seconds, or to the largest size: a slow backend is through in a
second or two, and a fast one is not measured on its launch times alone. `bytes` says what one call moves at the size it
came to. The calls of one measurement are queued one after another, and the download of the last one's small result is
the wait for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from octavo.backend import (
    Array,
    AttentionMetadata,
    DenseWeight,
    DType,
    KVCache,
    KVLayout,
    StepInputs,
    WeightRole,
)
from octavo_conformance.case import Case, Needs
from octavo_conformance.hostile.batch import Chunk, lay_out
from octavo_conformance.workbench import PRECISE, Workbench

_LONG = 0.02  # seconds of one call
_MEASURE = 0.1  # seconds of one measurement
_MOST_CALLS = 1000
_LIMIT = 120.0

Size = TypeVar("Size")

_HEADS, _KV_HEADS = 9, 3
_MIB = 1 << 20


def cases() -> Iterator[Case]:
    for dtype in PRECISE:
        needs = Needs(dtypes=(dtype,), kv_dtypes=(dtype,))
        measurements: dict[str, tuple[Callable[[Workbench, DType], None], bool]] = {
            f"copy_blocks/{dtype.value}/large_cache": (_copy_blocks, True),
            f"paged_attention/{dtype.value}/decode": (partial(_attention, _DECODES), True),
            f"paged_attention/{dtype.value}/prefill": (partial(_attention, _PREFILLS), False),
            f"rms_norm/{dtype.value}/residual": (_rms_norm, False),
        }
        for rows in (1, 32, 256):
            measurements[f"linear/{dtype.value}/rows={rows}"] = (partial(_linear, rows), rows == 1)
        for name, (measure, quick) in measurements.items():
            run = partial(_with_dtype, measure, dtype)
            yield Case(f"performance/{name}", run, needs, dtype, quick, _LIMIT)
    needs = Needs(dtypes=(DType.FLOAT32,), kv_dtypes=(DType.FLOAT32,))
    yield Case("performance/top_k/float32/k=64", _top_k, needs, DType.FLOAT32, limit=_LIMIT)


def _with_dtype(measure: Callable[[Workbench, DType], None], dtype: DType, bench: Workbench) -> None:
    measure(bench, dtype)


# ----------------------------------------------------------------------------------------------------- what is done


@dataclass(frozen=True, slots=True)
class Work:
    """One call, and what it has to do at least: bytes read and written, multiplications and additions."""

    call: Callable[[], Array]
    bytes: float
    flops: float = 0.0


_DECODES = tuple((Chunk(context, 1),) * sequences for sequences, context in ((2, 64), (8, 256), (16, 512), (64, 1024)))
_PREFILLS = tuple((Chunk(length, length),) for length in (64, 256, 1024))


def _copy_blocks(bench: Workbench, dtype: DType) -> None:
    _record(bench, _grown(bench, partial(_copy, bench, dtype), _COPIED), None)


def _attention(steps: Sequence[Sequence[Chunk]], bench: Workbench, dtype: DType) -> None:
    def work(chunks: Sequence[Chunk]) -> Work:
        layout = _layout(bench, dtype)
        batch = lay_out(bench.rng, chunks, layout.block_size)
        kv = _filled(bench, layout, batch.num_blocks)
        meta: AttentionMetadata = bench.device.stage(batch.inputs).attention
        shape = (batch.tokens, _HEADS, layout.head_size)
        q = bench.device.upload(_numbers(bench, *shape).astype(dtype.numpy))
        scale = float(layout.head_size**-0.5)
        pairs = sum(chunk.queries * (2 * chunk.context - chunk.queries + 1) // 2 for chunk in chunks)
        slots = sum(chunk.context for chunk in chunks)
        moved = 2 * slots * _KV_HEADS * layout.head_size + 2 * int(np.prod(shape))
        flops = 4.0 * _HEADS * layout.head_size * pairs
        return Work(lambda: bench.device.ops.paged_attention(q, kv[0], meta, scale), moved * dtype.itemsize, flops)

    _record(bench, _grown(bench, work, steps), dtype)


def _linear(rows: int, bench: Workbench, dtype: DType) -> None:
    def work(size: int) -> Work:
        device = bench.device
        matrix = device.upload(_numbers(bench, size, size).astype(dtype.numpy))
        weight = device.prepare(DenseWeight(matrix), WeightRole.LINEAR)
        x = device.upload(_numbers(bench, rows, size).astype(dtype.numpy))
        moved = (size * size + 2 * rows * size) * dtype.itemsize
        return Work(lambda: device.ops.linear(x, weight), moved, 2.0 * rows * size * size)

    _record(bench, _grown(bench, work, (512, 1024, 2048, 4096)), dtype)


def _rms_norm(bench: Workbench, dtype: DType) -> None:
    def work(rows: int) -> Work:
        device, hidden = bench.device, 2048
        weight = device.prepare(device.upload(_numbers(bench, hidden).astype(dtype.numpy)), WeightRole.NORM)
        x, residual = (device.upload(_numbers(bench, rows, hidden).astype(dtype.numpy)) for _ in range(2))
        moved = 4 * rows * hidden * dtype.itemsize
        return Work(lambda: device.ops.rms_norm(x, weight, 1e-5, residual)[0][:1], moved, 5.0 * rows * hidden)

    _record(bench, _grown(bench, work, (16, 128, 1024, 4096)), dtype)


def _top_k(bench: Workbench) -> None:
    def work(rows: int) -> Work:
        x = bench.device.upload(bench.rng.standard_normal((rows, 49152), np.float32))
        return Work(lambda: bench.device.ops.top_k(x, 64)[1], rows * 49152 * 4.0)

    _record(bench, _grown(bench, work, (1, 8, 64)), DType.FLOAT32)


# ------------------------------------------------------------------------------------------------------ how long it is


def _record(bench: Workbench, work: Work, dtype: DType | None) -> None:
    """The figures of a work. dtype: of the cache whose copying is the bandwidth beside it; None for that one itself."""
    seconds = _seconds(bench, work)
    bench.figures["seconds"] = seconds
    bench.figures["bytes"] = work.bytes
    bench.figures["bytes_per_second"] = work.bytes / seconds
    if work.flops:
        bench.figures["flops_per_second"] = work.flops / seconds
    if dtype is not None:
        copying = _grown(bench, partial(_copy, bench, dtype), _COPIED)
        bench.figures["of_copy_bandwidth"] = work.bytes / seconds / (copying.bytes / _seconds(bench, copying))


def _grown(bench: Workbench, work: Callable[[Size], Work], sizes: Sequence[Size]) -> Work:
    """The work at the first size at which a call takes long, or at the last one."""
    for size in sizes:
        found = work(size)
        _timed(bench, found, 1)  # what is compiled is compiled now
        if _timed(bench, found, 1) > _LONG:
            break
    return found


def _seconds(bench: Workbench, work: Work) -> float:
    """Of one call, the better of two measurements: whatever else happens here only makes it longer."""
    calls = max(1, min(_MOST_CALLS, int(_MEASURE / _timed(bench, work, 1))))
    return min(_timed(bench, work, calls) / calls for _ in range(2))


def _timed(bench: Workbench, work: Work, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = work.call()
    bench.device.download(result)
    return max(time.perf_counter() - start, 1e-9)


# ------------------------------------------------------------------------------------------------------------ caches

_COPIED = (4 * _MIB, 16 * _MIB, 64 * _MIB, 128 * _MIB)


def _copy(bench: Workbench, dtype: DType, size: int) -> Work:
    """`copy_blocks` of half a cache onto its other half, `size` bytes of it unless memory is short."""
    device, layout = bench.device, _layout(bench, dtype)
    block_bytes = device.kv_block_bytes(layout)
    count = max(1, min(size, device.memory().free // 8) // (2 * block_bytes))
    holder = [_filled(bench, layout, 2 * count + 1)]
    source = device.upload(np.arange(1, count + 1, dtype=np.int32))
    target = device.upload(np.arange(count + 1, 2 * count + 1, dtype=np.int32))
    q = device.upload(np.zeros((1, _HEADS, layout.head_size), dtype.numpy))
    meta = _last_slot(bench, layout, 2 * count)

    def call() -> Array:
        holder[0] = device.ops.copy_blocks(holder[0], source, target)
        # Its result is opaque: attention over one slot is what can be downloaded of it.
        return device.ops.paged_attention(q, holder[0][0], meta, 1.0)

    return Work(call, 2.0 * count * block_bytes)


def _last_slot(bench: Workbench, layout: KVLayout, block: int) -> AttentionMetadata:
    """A decode whose context is the first slot of one block."""
    zero, one = np.zeros(1, np.int32), np.ones(1, np.int32)
    table, slot = np.full((1, 1), block, np.int32), np.full(1, block * layout.block_size, np.int32)
    starts = np.array([0, 1], np.int32)
    meta = AttentionMetadata(zero, slot, zero.copy(), starts, one, table, decode_only=True)
    staged: AttentionMetadata = bench.device.stage(StepInputs(zero.copy(), zero.copy(), meta)).attention
    return staged


def _filled(bench: Workbench, layout: KVLayout, blocks: int) -> KVCache:
    """A cache of one layer with numbers in every slot: memory that nobody wrote is often not there yet."""
    device, pass_ = bench.device, 8192
    kv = list(device.allocate_kv(layout, blocks))
    shape = (pass_, layout.kv_heads, layout.head_size)
    k, v = (device.upload(_numbers(bench, *shape).astype(layout.dtype.numpy)) for _ in range(2))
    last = blocks * layout.block_size - 1
    for start in range(0, last + 1, pass_):
        slots = np.minimum(np.arange(start, start + pass_), last).astype(np.int32)
        kv[0] = device.ops.write_kv(kv[0], k, v, device.upload(slots))
    return kv


def _layout(bench: Workbench, dtype: DType) -> KVLayout:
    claimed = bench.capabilities.head_sizes
    head_size = 64 if claimed is None or 64 in claimed else bench.head_size
    return KVLayout(1, _KV_HEADS, head_size, bench.block_size, dtype, (None,), _HEADS)


def _numbers(bench: Workbench, *shape: int) -> NDArray[np.float32]:
    """Random numbers; of large arrays the same ones again and again, which no operation can tell."""
    few = bench.rng.standard_normal(min(int(np.prod(shape)), 1 << 16), np.float32)
    return np.resize(few, shape)
