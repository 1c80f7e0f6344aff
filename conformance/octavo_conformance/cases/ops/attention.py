"""Level `ops`: paged_attention, over every shape that a kernel has a special case for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from hypothesis import strategies as st

from octavo.backend import DType
from octavo_conformance.case import Case
from octavo_conformance.cases.ops.attention_step import AttentionSpec, AttentionStep, Content, Mix, small_blocks
from octavo_conformance.cases.ops.operation import generated, op_case
from octavo_conformance.hostile.batch import Chunk
from octavo_conformance.workbench import PRECISE, Workbench

HEADS = ((4, 4), (4, 2), (9, 3), (8, 2), (14, 2), (8, 1), (16, 1))
"""Query heads and KV heads: groups of 1, 2, 3, 4, 7, 8 and 16."""

HEAD_SIZES = (40, 64, 65, 72, 80, 96, 128, 192, 256)

BLOCK_SIZES = (1, 2, 4, 8, 32, 64, 128, 256)
"""All but the 16 that the other shapes have."""

KV_DTYPES = (*PRECISE, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2, DType.INT8)


def cases() -> Iterator[Case]:
    for dtype in PRECISE:
        yield from _mixes(dtype)
        yield from _shapes(dtype)
        yield from _scores(dtype)
        yield from _ownership(dtype)
        yield op_case("paged_attention", dtype, "generated", partial(_generated, dtype), needs=_plain(dtype).needs)
        for kv_dtype in KV_DTYPES:
            if kv_dtype is not dtype:
                yield from _converted(dtype, kv_dtype)


def _mixes(dtype: DType) -> Iterator[Case]:
    """Sequences of every kind beside each other, alone, and padded to a bucket."""
    for mix in Mix:
        spec = replace(_plain(dtype), mix=mix)
        yield _case(f"mix={mix.value}", spec, quick=mix in (Mix.DECODE, Mix.CHUNKED, Mix.ONE, Mix.HUNDREDS))
    for mix in (Mix.DECODE, Mix.MIXED, Mix.CHUNKED, Mix.FIRST):
        spec = replace(_plain(dtype), mix=mix, padded=True)
        yield _case(f"mix={mix.value},padded", spec, quick=mix is not Mix.CHUNKED)
    yield _case("mix=long", replace(_plain(dtype), chunks=(Chunk(4099, 1), Chunk(5000, 2))))


def _shapes(dtype: DType) -> Iterator[Case]:
    """Groups of query heads, head sizes, block sizes."""
    for heads, kv_heads in HEADS:
        for mix in (Mix.DECODE, Mix.CHUNKED):
            spec = replace(_plain(dtype), mix=mix, heads=heads, kv_heads=kv_heads, head_size=64, block_size=16)
            quick = heads == 9 or (mix is Mix.DECODE and heads == 14)
            yield _case(f"{mix.value},heads={heads}x{kv_heads}x64,block=16", spec, quick)
    for size in HEAD_SIZES:
        spec = replace(_plain(dtype), head_size=size, block_size=16)
        yield _case(f"mixed,heads=4x2x{size},block=16", spec, quick=size in (65, 80, 128, 256))
    for block_size in BLOCK_SIZES:
        spec = replace(_plain(dtype), head_size=64, block_size=block_size)
        yield _case(f"mixed,heads=4x2x64,block={block_size}", spec, quick=block_size in (1, 32))


def _scores(dtype: DType) -> Iterator[Case]:
    """What happens between q.k and the softmax."""
    plain = _plain(dtype)
    for window in (1, 7, 16, 128, 10_000):
        for mix in (Mix.DECODE, Mix.CHUNKED, Mix.HUNDREDS):
            quick = (window, mix) in ((7, Mix.DECODE), (7, Mix.CHUNKED), (1, Mix.CHUNKED), (128, Mix.HUNDREDS))
            yield _case(f"window={window},mix={mix.value}", replace(plain, mix=mix, window=window), quick)
    for softcap in (1.5, 30.0):
        yield _case(f"softcap={softcap:g}", replace(plain, softcap=softcap), quick=softcap < 2)
    yield _case("softcap=30,extreme", replace(plain, mix=Mix.HUNDREDS, content=Content.EXTREME, softcap=30.0))
    for sinks in (0.0, 6.0, -40.0):
        yield _case(f"sinks={sinks:g}", replace(plain, sinks=sinks), quick=sinks == 0.0)
    # Contexts that are long enough to be divided among several workers, of which one adds the sink.
    yield _case("sinks=1,mix=hundreds", replace(plain, mix=Mix.HUNDREDS, sinks=1.0), quick=True)
    every = replace(plain, window=7, softcap=1.5, sinks=1.0, padded=True)
    yield _case("window=7,softcap=1.5,sinks=1", every, quick=True)
    yield _case(
        "window=100,softcap=1.5,sinks=1,mix=hundreds", replace(every, mix=Mix.HUNDREDS, window=100, padded=False)
    )
    for scale in (0.05, 1.0):
        yield _case(f"scale={scale:g}", replace(plain, scale=scale), quick=scale == 1.0)
    for content in (Content.RISING, Content.EXTREME):
        yield _case(f"{content.value},mix=hundreds", replace(plain, mix=Mix.HUNDREDS, content=content), quick=True)
        yield _case(f"{content.value},mix=mixed", replace(plain, content=content))
    extreme = replace(plain, mix=Mix.HUNDREDS, content=Content.EXTREME)
    yield _case("extreme,sinks=60", replace(extreme, sinks=60.0))
    yield _case("uniform,mix=thousands", replace(plain, mix=Mix.THOUSANDS, content=Content.UNIFORM), quick=True)


def _ownership(dtype: DType) -> Iterator[Case]:
    """Blocks in the tables of several sequences: a shared prefix, and a tail that holds another one's tokens."""
    yield op_case("paged_attention", dtype, "shared", partial(_shared, dtype), quick=True, needs=_plain(dtype).needs)


def _shared(dtype: DType, bench: Workbench) -> None:
    size = bench.block_size
    owner = Chunk(3 * size + size // 2 + 1, 1)
    inside = Chunk(2 * size - size // 2, 1)  # ends within a block in which the owner goes on
    longer = Chunk(4 * size, size + 3)
    spec = replace(_plain(dtype), chunks=(owner, inside, longer), shared={1: (0, 2), 2: (0, 2)})
    AttentionStep(spec, bench).check()


def _converted(dtype: DType, kv_dtype: DType) -> Iterator[Case]:
    """A cache of another dtype than the queries."""
    plain = replace(_plain(dtype), kv_dtype=kv_dtype)
    name = f"kv={kv_dtype.value}"
    yield _case(name, plain, quick=True)
    yield _case(f"{name},mix=hundreds", replace(plain, mix=Mix.HUNDREDS))
    yield _case(f"{name},mix=decode,padded", replace(plain, mix=Mix.DECODE, padded=True))
    yield _case(f"{name},window=7,softcap=1.5,sinks=1", replace(plain, window=7, softcap=1.5, sinks=1.0))
    yield _case(f"{name},heads=9x3x64,block=16", replace(plain, heads=9, kv_heads=3, head_size=64, block_size=16))


def _generated(dtype: DType, bench: Workbench) -> None:
    longest = st.integers(1, 70)
    chunks = st.lists(st.tuples(longest, longest).map(lambda two: Chunk(max(two), min(two))), min_size=1, max_size=6)
    groups = st.sampled_from(HEADS)
    specs = st.builds(
        lambda chunks, decodes, groups, **rest: AttentionSpec(
            dtype, dtype, chunks=(*decodes, *chunks), heads=groups[0], kv_heads=groups[1], **rest
        ),
        chunks=chunks,
        decodes=st.lists(longest.map(lambda context: Chunk(context, 1)), max_size=4),
        groups=groups,
        block_size=st.sampled_from(small_blocks(bench)),
        window=st.none() | st.integers(1, 80),
        softcap=st.none() | st.sampled_from([1.5, 30.0]),
        sinks=st.none() | st.sampled_from([0.0, 3.0]),
        padded=st.booleans(),
    )
    generated(bench, specs, lambda spec, bench: AttentionStep(spec, bench).check())


def _plain(dtype: DType) -> AttentionSpec:
    return AttentionSpec(dtype, dtype)


def _case(variant: str, spec: AttentionSpec, quick: bool = False) -> Case:
    return op_case("paged_attention", spec.dtype, variant, partial(_run, spec), quick=quick, needs=spec.needs)


def _run(spec: AttentionSpec, bench: Workbench) -> None:
    AttentionStep(spec, bench).check()
