"""One call of `paged_attention`: what is asked, the cache that it is asked of, and the right answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

import numpy as np

from octavo.backend import Array, DType, KVLayout
from octavo.backend.tree import tree_map
from octavo_conformance.case import Needs
from octavo_conformance.cases.ops.operation import HostArray, apply, numbers
from octavo_conformance.hostile.batch import Chunk, lay_out
from octavo_conformance.hostile.cache import HostileCache
from octavo_conformance.oracles.attention import attention
from octavo_conformance.workbench import Workbench

ROUNDED = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
"""KV dtypes whose rounding the oracle does as well; that of the others is part of the tolerance."""


class Mix(str, Enum):
    """The sequences of a step, their contexts around the borders of blocks."""

    DECODE = "decode"
    PREFILL = "prefill"  # whole prompts
    CHUNKED = "chunked"  # later parts of prompts
    MIXED = "mixed"  # all of these
    ONE = "one"  # a batch of one
    FIRST = "first"  # a single token that sees itself only
    MANY = "many"  # more sequences than a tile has rows
    HUNDREDS = "hundreds"  # several hundred tokens, more than kernels look at in one pass
    THOUSANDS = "thousands"

    def chunks(self, block_size: int) -> tuple[Chunk, ...]:
        size, few = block_size, min(block_size + 1, 24)
        decodes = [Chunk(context, 1) for context in (1, max(1, size - 1), size, size + 1, 2 * size, 3 * size + 5)]
        prompts = [Chunk(few, few), Chunk(2, 2), Chunk(2 * few + 5, 2 * few + 5)]
        parts = [Chunk(3 * size + 5, few), Chunk(2 * size + 1, 2), Chunk(size + few, few)]
        chunks = {
            Mix.DECODE: decodes,
            Mix.PREFILL: prompts,
            Mix.CHUNKED: parts,
            Mix.MIXED: [*decodes[1:5], prompts[0], *parts[:2]],
            Mix.ONE: [Chunk(3 * size + 5, 1)],
            Mix.FIRST: [Chunk(1, 1)],
            Mix.MANY: [Chunk(1 + 3 * row % (4 * size), 1) for row in range(67)],
            Mix.HUNDREDS: [Chunk(517, 1), Chunk(256, 1), Chunk(300, 33), Chunk(270, 270)],
            Mix.THOUSANDS: [Chunk(2048, 1), Chunk(2051, 5)],
        }
        return tuple(chunks[self])


class Content(str, Enum):
    """What queries, keys and values look like."""

    NORMAL = "normal"
    RISING = "rising"  # scores that grow with the position for even heads, and fall for odd ones
    EXTREME = "extreme"  # scores around 100 for even heads and -100 for odd ones, beyond the range of exp
    UNIFORM = "uniform"  # almost equal weights over values with a mean: sums in a low precision stop growing


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """head_size, block_size: None takes the device's. scale: None takes 1 / sqrt(head_size).

    sinks: None, or the mean of the sinks. chunks: other sequences than those of `mix`. shared: as `lay_out` takes it.
    padded: with padding tokens whose queries are NaN, padding sequences, and wider block tables.
    """

    dtype: DType
    kv_dtype: DType
    mix: Mix = Mix.MIXED
    heads: int = 4
    kv_heads: int = 2
    head_size: int | None = None
    block_size: int | None = None
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: float | None = None
    content: Content = Content.NORMAL
    padded: bool = False
    chunks: tuple[Chunk, ...] = ()
    shared: Mapping[int, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def needs(self) -> Needs:
        return Needs.of_cache(self.kv_dtype, self.block_size, self.head_size, (self.dtype,))


class AttentionStep:
    """A spec on a device: a cache with every sequence's keys and values, and garbage in all other slots.

    Positions that no query's window reaches are garbage too.
    """

    def __init__(self, spec: AttentionSpec, bench: Workbench) -> None:
        self.spec, self.bench = spec, bench
        self.block_size = spec.block_size or bench.block_size
        self.head_size = spec.head_size or bench.head_size
        self.scale = spec.scale or (1 / 64 if spec.content is Content.EXTREME else self.head_size**-0.5)
        padding = {"pad_tokens": 5, "pad_sequences": 3, "pad_blocks": 2} if spec.padded else {}
        chunks = spec.chunks or spec.mix.chunks(self.block_size)
        self.batch = lay_out(bench.rng, chunks, self.block_size, shared=spec.shared, **padding)
        self.sinks = None if spec.sinks is None else numbers(bench, (spec.heads,), spec.dtype, shift=spec.sinks)
        self.q = self._queries()
        self.contexts: list[tuple[HostArray, HostArray]] = []
        layout = KVLayout(
            1, spec.kv_heads, self.head_size, self.block_size, spec.kv_dtype, (spec.window,), query_heads=spec.heads
        )
        self.cache = HostileCache(bench.device, layout, self.batch.num_blocks, bench.rng, spec.dtype)
        for sequence in range(len(self.batch.chunks)):
            self._fill(sequence)

    def check(self) -> None:
        """Raises CaseFailure where the device's result is wrong."""
        spec, batch = self.spec, self.batch
        staged = self.bench.device.stage(tree_map(np.copy, batch.inputs)).attention
        ops, kv = self.bench.device.ops, self.cache.layers[0]

        def run(q: Array, sinks: Array | None = None) -> tuple[Array]:
            return (ops.paged_attention(q, kv, staged, self.scale, spec.window, spec.softcap, sinks),)

        arguments = [self.q] if self.sinks is None else [self.q, self.sinks]
        (result,) = apply(self.bench, "paged_attention", run, arguments, self.describe())
        for name in ("positions", "sequences", "query_starts", "context_lengths", "block_tables"):
            left, host = self.bench.device.download(getattr(staged, name)), getattr(batch.inputs.attention, name)
            self.bench.check_equal("paged_attention", left, host, f"{self.describe()}; {name}, an argument")
        self.bench.check_form("paged_attention", result, self.q.shape, spec.dtype, self.describe())
        real = result[: batch.tokens]
        extra = self.bench.tolerances.of("kv_cache", spec.kv_dtype)
        self.bench.measure("paged_attention", spec.dtype, real, self.expected(), self.describe(), extra)

    def expected(self) -> HostArray:
        """The right answer for the real tokens, float64 [tokens, heads, head_size]."""
        spec = self.spec
        rows = [
            attention(self.q[self.batch.rows(sequence)], k, v, self.scale, spec.window, spec.softcap, self.sinks)
            for sequence, (k, v) in enumerate(self.contexts)
        ]
        return np.concatenate(rows)

    def describe(self) -> str:
        """All that matters of the call, for a message."""
        spec = self.spec
        features = [
            f"heads {spec.heads}x{spec.kv_heads}x{self.head_size}",
            self.batch.describe(),
            f"KV cache {spec.kv_dtype.value}",
            f"scale {self.scale:.4g}",
        ]
        features += [f"window {spec.window}"] if spec.window is not None else []
        features += [f"softcap {spec.softcap:g}"] if spec.softcap is not None else []
        features += [f"sinks around {spec.sinks:g}"] if spec.sinks is not None else []
        features += [f"{spec.content.value} scores"] if spec.content is not Content.NORMAL else []
        features += ["blocks shared between sequences"] if spec.shared else []
        return ", ".join(features)

    def _queries(self) -> HostArray:
        spec, batch = self.spec, self.batch
        shape = (batch.tokens, spec.heads, self.head_size)
        q = numbers(self.bench, shape, DType.FLOAT32)
        if spec.content is Content.RISING:
            q = _eighths(q)
            q[:, 0::2, 0], q[:, 1::2, 0] = round(1.0 / self.scale), -round(1.0 / self.scale)
        if spec.content is Content.EXTREME:
            # With a scale of a power of two every score is exact, and so large a score has no rounding of its own.
            q = np.rint(np.clip(3.0 * q, -8, 8))
            q[:, 0::2, 0], q[:, 1::2, 0] = 80.0, -80.0
        if spec.content is Content.UNIFORM:
            q = 0.05 * q
        padding = len(batch.inputs.token_ids) - batch.tokens
        return np.concatenate([q, np.full((padding, *shape[1:]), np.nan)]).astype(spec.dtype.numpy)

    def _keys_and_values(self, context: int) -> tuple[HostArray, HostArray]:
        spec = self.spec
        shape = (context, spec.kv_heads, self.head_size)
        k, v = numbers(self.bench, shape, DType.FLOAT32), numbers(self.bench, shape, DType.FLOAT32)
        if spec.content is Content.RISING:
            k = _eighths(k)
            k[..., 0] = (np.arange(context) // 16)[:, None]
        if spec.content is Content.EXTREME:
            k = np.rint(np.clip(3.0 * k, -8, 8))
            k[..., 0] = 80.0
        if spec.content is Content.UNIFORM:
            v = 1.0 + 0.25 * v
        return k.astype(spec.dtype.numpy), v.astype(spec.dtype.numpy)

    def _fill(self, sequence: int) -> None:
        """Write one sequence's context into the cache, but for what it shares and for what no query sees."""
        spec, chunk = self.spec, self.batch.chunks[sequence]
        k, v = self._keys_and_values(chunk.context)
        owner, blocks = spec.shared.get(sequence, (sequence, 0))
        common = min(blocks * self.block_size, chunk.context)
        if common:
            k[:common], v[:common] = (side[:common] for side in self.contexts[owner])
        self.contexts.append((k, v))
        first = 0 if spec.window is None else max(0, chunk.context - chunk.queries - spec.window + 1)
        positions = np.arange(max(common, first), chunk.context)
        if len(positions):
            self.cache.write(0, k[positions], v[positions], self.batch.slots(sequence, positions))
        if spec.kv_dtype in ROUNDED:
            stored = (side.astype(spec.kv_dtype.numpy) for side in (k, v))
            self.contexts[sequence] = next(stored), next(stored)


def _eighths(x: HostArray) -> HostArray:
    """Rounded so that products and their sums are exact in float32, in any order: a case is about what comes after."""
    return np.rint(8.0 * x) / 8.0


def small_blocks(bench: Workbench) -> list[int]:
    """The block sizes of the device that generated cases choose from."""
    return [size for size in bench.capabilities.block_sizes if size <= 64] or [bench.block_size]
