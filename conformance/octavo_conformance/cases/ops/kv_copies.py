"""Level `ops`: copy_blocks, which is copy-on-write: whole blocks, every layer, all read before any is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
from hypothesis import strategies as st

from octavo.backend import DType, KVLayout
from octavo_conformance.case import Case, Needs
from octavo_conformance.cases.ops.attention_step import small_blocks
from octavo_conformance.cases.ops.mirror import Mirror
from octavo_conformance.cases.ops.operation import generated, op_case
from octavo_conformance.workbench import PRECISE, Workbench

KV_DTYPES = (*PRECISE, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2, DType.INT8)

PAIRS: Mapping[str, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        "one": ((3, 5),),
        "chain": ((1, 2), (2, 3), (3, 4)),
        "chain,backwards": ((3, 4), (2, 3), (1, 2)),
        "swap": ((1, 2), (2, 1)),
        "cycle": ((1, 2), (2, 3), (3, 1)),
        "fan": ((1, 4), (1, 5), (1, 6)),
        "identical": ((4, 4), (2, 3)),
        "padded": ((3, 5), (6, 1), (0, 0), (0, 0), (0, 0)),
        "only_padding": ((0, 0), (0, 0)),
        "partial": ((7, 2),),  # block 7 is not full: what stands behind its tokens is copied or not, but nothing else
        "everything": tuple((block, block % 7 + 1) for block in range(1, 8)),
    }
)
"""Blocks that are copied, source and target, in a cache of nine; 1 to 6 are full, 8 is free."""

BLOCKS = 9


@dataclass(frozen=True, slots=True)
class _Copy:
    """In a cache of `blocks` blocks the last is free and the one before it is not full.

    head_size, block_size: None takes the device's.
    """

    kv_dtype: DType
    pairs: tuple[tuple[int, int], ...]
    blocks: int = BLOCKS
    layers: int = 3
    kv_heads: int = 2
    head_size: int | None = None
    block_size: int | None = None

    @property
    def needs(self) -> Needs:
        return Needs.of_cache(self.kv_dtype, self.block_size, self.head_size)


def cases() -> Iterator[Case]:
    for kv_dtype in KV_DTYPES:
        chain = _Copy(kv_dtype, PAIRS["chain"])
        for name, pairs in PAIRS.items():
            yield _case(name, replace(chain, pairs=pairs), quick=name in ("one", "chain", "swap", "padded", "partial"))
        many = tuple((block, block + 10) for block in range(1, 11))
        yield _case("many", replace(chain, pairs=many, blocks=24, layers=1), quick=True)
        for block_size in (1, 2, 4, 8, 32, 64, 128, 256):
            yield _case(f"chain,block={block_size}", replace(chain, block_size=block_size))
        for heads, size in ((1, 64), (3, 64), (1, 65), (8, 128), (2, 40), (1, 256)):
            yield _case(f"chain,heads={heads}x{size}", replace(chain, kv_heads=heads, head_size=size))
        for layers in (1, 7):
            yield _case(f"chain,layers={layers}", replace(chain, layers=layers))
        yield op_case("copy_blocks", kv_dtype, "generated", partial(_generated, kv_dtype), needs=chain.needs)


def _case(variant: str, spec: _Copy, quick: bool = False) -> Case:
    return op_case("copy_blocks", spec.kv_dtype, variant, partial(_copy, spec), quick=quick, needs=spec.needs)


def _copy(spec: _Copy, bench: Workbench) -> None:
    """Copy, then write to a copy and to what it was copied from: each of them is on its own."""
    size = spec.block_size or bench.block_size
    layout = KVLayout(spec.layers, spec.kv_heads, spec.head_size or bench.head_size, size, spec.kv_dtype)
    claimed = bench.capabilities.dtypes
    mirror = Mirror(bench, layout, spec.blocks, spec.kv_dtype if spec.kv_dtype in claimed else bench.dtype)
    mirror.fill(range(1, spec.blocks - 2))
    mirror.fill([spec.blocks - 2], max(1, size // 2))
    shown = ", ".join(f"{source} to {target}" for source, target in spec.pairs)
    inputs = (
        f"blocks {shown} of {size} tokens, {spec.kv_heads}x{layout.head_size} KV heads, {spec.layers} layers, "
        f"KV cache {spec.kv_dtype.value}"
    )
    source, target = [pair[0] for pair in spec.pairs], [pair[1] for pair in spec.pairs]
    _copy_once(mirror, source, target, inputs)
    mirror.note_copies(source, target)
    mirror.check("copy_blocks", inputs)
    moved = [pair for pair in spec.pairs if pair[0] != pair[1]]
    if moved:
        mirror.fill([moved[0][1]], 1)
        mirror.check("copy_blocks", f"{inputs}; after a write to block {moved[0][1]}, the copy")
        mirror.fill([moved[0][0]])
        mirror.check("copy_blocks", f"{inputs}; after writes to block {moved[0][0]}, which was copied")


def _copy_once(mirror: Mirror, source: Sequence[int], target: Sequence[int], inputs: str) -> None:
    device, cache = mirror.bench.device, mirror.cache
    arguments = [np.array(blocks, np.int32) for blocks in (source, target)]
    uploaded = [device.upload(argument.copy()) for argument in arguments]
    cache.layers = list(device.ops.copy_blocks(cache.layers, *uploaded))
    for name, argument, array in zip(("source", "target"), arguments, uploaded, strict=True):
        mirror.bench.check_equal("copy_blocks", device.download(array), argument, f"{inputs}; its argument {name}")


def _generated(kv_dtype: DType, bench: Workbench) -> None:
    block = st.integers(1, BLOCKS - 1)
    pairs = st.lists(st.tuples(block, block), min_size=1, max_size=8, unique_by=lambda pair: pair[1])
    padding = st.integers(0, 3).map(lambda count: ((0, 0),) * count)
    specs = st.builds(
        lambda pairs, padding, **rest: _Copy(kv_dtype, (*pairs, *padding), **rest),
        pairs=pairs,
        padding=padding,
        layers=st.integers(1, 4),
        kv_heads=st.sampled_from([1, 2, 3]),
        block_size=st.sampled_from(small_blocks(bench)),
    )
    generated(bench, specs, _copy)
