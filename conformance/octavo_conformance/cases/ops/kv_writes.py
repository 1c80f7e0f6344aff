"""Level `ops`: write_kv and rotary_write_kv. Each token in its slot, of its layer, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo.backend import Array, DType, KVLayout, RotaryTable
from octavo_conformance.case import Case, Needs
from octavo_conformance.cases.ops.attention_step import ROUNDED, small_blocks
from octavo_conformance.cases.ops.mirror import Mirror
from octavo_conformance.cases.ops.operation import HostArray, apply, generated, numbers, op_case, with_padding
from octavo_conformance.oracles.arrays import rotary
from octavo_conformance.workbench import PRECISE, Workbench

KV_DTYPES = (*PRECISE, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2, DType.INT8)

BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

HEAD_SIZES = (40, 64, 65, 80, 96, 128, 192, 256)

LAYERS, LAYER = 2, 1
"""Layers of the cache, and the one that is written: the other has to stay as it is."""


def cases() -> Iterator[Case]:
    for dtype in PRECISE:
        for kv_dtype in KV_DTYPES:
            yield from _writes(dtype, kv_dtype)
        yield from _rotations(dtype)


# --------------------------------------------------------------------------------------------------------- write_kv


@dataclass(frozen=True, slots=True)
class _Write:
    """`tokens` real tokens and `padding` ones, whose slot is 0.

    head_size, block_size: None takes the device's.
    """

    dtype: DType
    kv_dtype: DType
    tokens: int = 21
    padding: int = 3
    kv_heads: int = 2
    head_size: int | None = None
    block_size: int | None = None

    @property
    def needs(self) -> Needs:
        return Needs.of_cache(self.kv_dtype, self.block_size, self.head_size, (self.dtype,))


def _writes(dtype: DType, kv_dtype: DType) -> Iterator[Case]:
    plain = _Write(dtype, kv_dtype)
    variants = {"padded": plain}
    if kv_dtype is dtype:
        variants["tokens=1"] = replace(plain, tokens=1, padding=0)
        variants["tokens=300"] = replace(plain, tokens=300, padding=20)
        variants["tokens=1,padding=40"] = replace(plain, tokens=1, padding=40)
        variants |= {f"heads={heads}": replace(plain, kv_heads=heads) for heads in (1, 3, 8)}
        variants |= {f"size={size}": replace(plain, head_size=size) for size in HEAD_SIZES}
        variants |= {f"block={size}": replace(plain, block_size=size) for size in BLOCK_SIZES}
    for variant, spec in variants.items():
        quick = variant in ("padded", "tokens=1", "size=65", "size=80", "block=1")
        name = variant if kv_dtype is dtype else f"kv={kv_dtype.value},{variant}"
        yield op_case("write_kv", dtype, name, partial(_write, spec), quick=quick, needs=spec.needs)
    if kv_dtype is dtype:
        yield op_case("write_kv", dtype, "generated", partial(_generated_writes, dtype), needs=plain.needs)


def _write(spec: _Write, bench: Workbench) -> None:
    """Into free blocks first, then over tokens that are there."""
    mirror, slots = _prepare(spec, bench)
    inputs = _describe(spec, mirror)
    taken = mirror.slots([1])
    for where, into in (("free slots", slots), ("slots that held others", np.concatenate([slots[::2], taken[:1]]))):
        k, v = mirror.tokens(len(into))
        if spec.kv_dtype in ROUNDED:  # large and small ones, so that each is rounded at another bit
            v = (v * 10.0 ** bench.rng.uniform(-2, 2, v.shape)).astype(spec.dtype.numpy)
        _write_once(mirror, k, v, into, spec.padding, inputs)
        mirror.note(LAYER, k, v, into)
        mirror.check("write_kv", f"{inputs}; into {where}")


def _write_once(
    mirror: Mirror, k: HostArray, v: HostArray, slots: NDArray[np.int32], padding: int, inputs: str
) -> None:
    cache, ops = mirror.cache, mirror.bench.device.ops

    def run(k: Array, v: Array, slots: Array) -> tuple[Array, ...]:
        cache.layers[LAYER] = ops.write_kv(cache.layers[LAYER], k, v, slots)
        return ()

    arguments = [*(_padded(side, padding) for side in (k, v)), with_padding(slots, padding)]
    apply(mirror.bench, "write_kv", run, arguments, inputs)
    run(*(mirror.bench.device.upload(argument.copy()) for argument in arguments))  # `apply` ended with other values


def _generated_writes(dtype: DType, bench: Workbench) -> None:
    specs = st.builds(
        _Write,
        st.just(dtype),
        st.just(dtype),
        tokens=st.integers(1, 60),
        padding=st.integers(0, 5),
        kv_heads=st.sampled_from([1, 2, 3, 8]),
        block_size=st.sampled_from(small_blocks(bench)),
    )
    generated(bench, specs, _write)


def _prepare(spec: _Write | _Rotation, bench: Workbench) -> tuple[Mirror, NDArray[np.int32]]:
    """A cache in which every other block holds another request's tokens, and free slots in a shuffled order.

    The free blocks are filled from their first slot on, as sequences fill them.
    """
    size, head_size = spec.block_size or bench.block_size, spec.head_size or bench.head_size
    count = max(1, -(-spec.tokens // size))
    heads = spec.heads if isinstance(spec, _Rotation) else 2 * spec.kv_heads
    layout = KVLayout(LAYERS, spec.kv_heads, head_size, size, spec.kv_dtype, query_heads=heads)
    mirror = Mirror(bench, layout, 2 * count + 3, spec.dtype)
    neighbours, free = range(1, 2 * count + 3, 2), range(2, 2 * count + 2, 2)
    mirror.fill(tuple(neighbours)[:-1])
    mirror.fill(tuple(neighbours)[-1:], max(1, size - 1))
    return mirror, bench.rng.permutation(mirror.slots(free)[: spec.tokens])


def _padded(rows: HostArray, padding: int) -> HostArray:
    """Padding rows of NaN, and a last one of numbers that show wherever they should not have been written."""
    padded = with_padding(rows, padding)
    padded[len(rows) + max(0, padding - 1) :] = 2.0
    return padded


def _describe(spec: _Write | _Rotation, mirror: Mirror) -> str:
    layout = mirror.layout
    return (
        f"{spec.tokens} tokens and {spec.padding} padding ones of {spec.kv_heads}x{layout.head_size} KV heads in "
        f"{spec.dtype.value}, shuffled slots in blocks of {layout.block_size}, KV cache {spec.kv_dtype.value}"
    )


# -------------------------------------------------------------------------------------------------- rotary_write_kv


@dataclass(frozen=True, slots=True)
class _Rotation:
    """rotary_share: of each head that is turned. longest: positions of the table; tokens stand anywhere in it."""

    dtype: DType
    kv_dtype: DType
    interleaved: bool = False
    rotary_share: float = 1.0
    tokens: int = 13
    padding: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_size: int | None = None
    block_size: int | None = None
    longest: int = 300

    @property
    def needs(self) -> Needs:
        return Needs.of_cache(self.kv_dtype, self.block_size, self.head_size, (self.dtype,))


def _rotations(dtype: DType) -> Iterator[Case]:
    plain = _Rotation(dtype, dtype)
    variants = {}
    for pairing, interleaved in (("halves", False), ("interleaved", True)):
        paired = replace(plain, interleaved=interleaved)
        variants[pairing] = paired
        variants[f"{pairing},partial"] = replace(paired, rotary_share=0.5)
        variants[f"{pairing},partial=0.25,size=80"] = replace(paired, rotary_share=0.25, head_size=80)
        variants[f"{pairing},tokens=1"] = replace(paired, tokens=1, padding=0)
        variants[f"{pairing},tokens=150"] = replace(paired, tokens=150, longest=9000)
        for heads, kv_heads, size in ((9, 3, 64), (8, 1, 128), (4, 4, 96), (3, 1, 40), (2, 1, 256)):
            spec = replace(paired, heads=heads, kv_heads=kv_heads, head_size=size)
            variants[f"{pairing},heads={heads}x{kv_heads}x{size}"] = spec
    variants |= {f"block={size}": replace(plain, block_size=size) for size in (1, 4, 32, 128)}
    variants |= {f"kv={other.value}": replace(plain, kv_dtype=other) for other in KV_DTYPES if other is not dtype}
    for variant, spec in variants.items():
        quick = variant in ("halves", "interleaved", "halves,partial", "interleaved,partial") or "kv=" in variant
        yield op_case("rotary_write_kv", dtype, variant, partial(_rotate, spec), quick=quick, needs=spec.needs)
    yield op_case("rotary_write_kv", dtype, "generated", partial(_generated_rotations, dtype), needs=plain.needs)


def _rotate(spec: _Rotation, bench: Workbench) -> None:
    mirror, slots = _prepare(spec, bench)
    size = mirror.layout.head_size
    turned = 2 * round(spec.rotary_share * size / 2)
    inputs = f"{_describe(spec, mirror)}, {spec.heads} query heads, {turned} of {size} entries turned, pairs of "
    inputs += "neighbours" if spec.interleaved else "halves"
    positions = bench.rng.integers(0, spec.longest, spec.tokens).astype(np.int32)
    positions[: 2 if spec.tokens > 1 else 0] = (0, spec.longest - 1)[: spec.tokens]
    angles = np.arange(spec.longest)[:, None] * 10_000.0 ** (-np.arange(turned // 2) / (turned // 2))
    cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    q = numbers(bench, (spec.tokens, spec.heads, size), spec.dtype)
    k, v = mirror.tokens(spec.tokens)
    cache, ops = mirror.cache, bench.device.ops

    def run(q: Array, k: Array, v: Array, positions: Array, slots: Array, table: Array) -> tuple[Array, ...]:
        rotated, cache.layers[LAYER] = ops.rotary_write_kv(
            q, k, v, positions, RotaryTable(table, spec.interleaved), cache.layers[LAYER], slots
        )
        return (rotated,)

    padding = spec.padding
    arguments = [with_padding(q, padding), _padded(k, padding), _padded(v, padding)]
    arguments += [with_padding(positions, padding), with_padding(slots, padding), cos_sin]
    (rotated,) = apply(bench, "rotary_write_kv", run, arguments, inputs)
    run(*(bench.device.upload(argument.copy()) for argument in arguments))  # `apply` ended with other values
    bench.check_form("rotary_write_kv", rotated, arguments[0].shape, spec.dtype, inputs)
    expected = rotary(q, positions, cos_sin, spec.interleaved)
    bench.measure("rotary_write_kv", spec.dtype, rotated[: spec.tokens], expected, f"{inputs}; the rotated queries")
    # In the compute dtype first, as `rotary` and then `write_kv` have it. A fused kernel may round once instead of
    # twice, or to the neighbour where the exact value lies between two: where the cache is coarser than the queries,
    # that shows.
    keys = rotary(k, positions, cos_sin, spec.interleaved).astype(spec.dtype.numpy)
    mirror.note(LAYER, keys, v, slots)
    coarser = spec.kv_dtype is not spec.dtype and spec.kv_dtype in ROUNDED
    extra = bench.tolerances.of("paged_attention", spec.kv_dtype) if coarser else 0.0
    mirror.check("rotary_write_kv", inputs, extra)


def _generated_rotations(dtype: DType, bench: Workbench) -> None:
    specs = st.builds(
        lambda heads, **rest: _Rotation(dtype, dtype, heads=heads[0], kv_heads=heads[1], **rest),
        interleaved=st.booleans(),
        rotary_share=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        tokens=st.integers(1, 40),
        padding=st.integers(0, 4),
        heads=st.sampled_from([(1, 1), (4, 2), (9, 3), (14, 2)]),
        longest=st.integers(2, 500),
    )
    generated(bench, specs, _rotate)
