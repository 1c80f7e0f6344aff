"""`Ops.copy_blocks` by a Pallas kernel: nothing but copies within memory, of whole blocks.

XLA gathers the blocks and scatters them. For caches of eight bits it does so in another tiling than the pool has, where
rows have 256 lanes, and copies the pool there and back in every layer. Here nothing is computed, so that no tiling
matters: each block goes to where all sources are gathered first, since a pair may overwrite what another one reads, and
from there to its target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from octavo.backend import KVCache, UnsupportedError
from octavo_xla.kernels.tiling import SMEM_TABLE_BYTES, Ref
from octavo_xla.kv import PagedKV

IN_FLIGHT = 32
"""Pairs whose copies are under way at a time: enough to hide the latency of memory behind small blocks."""

MOST_PAIRS = SMEM_TABLE_BYTES // 8
"""Pairs of block ids that fit scalar memory."""


def copy_blocks(kv: KVCache, source: jax.Array, target: jax.Array, *, interpret: Any = False) -> list[PagedKV]:
    """`Ops.copy_blocks`. The pools are updated in place where the caller gives them away (donation); otherwise XLA
    copies them first. Beside them it takes the memory of n blocks of a layer. Raises UnsupportedError for more pairs
    than scalar memory holds.
    """
    if len(source) > MOST_PAIRS:
        raise UnsupportedError(
            f"At most {MOST_PAIRS:,} blocks can be copied at a time on a TPU, not {len(source):,}: copy them in parts."
        )
    return [_copied(layer, source, target, interpret) for layer in kv]


def _copied(kv: PagedKV, source: jax.Array, target: jax.Array, interpret: Any) -> PagedKV:
    pools = [kv.data] if kv.scales is None else [kv.data, kv.scales]
    count = len(pools)
    updated = [pltpu.HBM(pool.shape, pool.dtype) for pool in pools]
    gathered = [pltpu.HBM((len(source), *pool.shape[1:]), pool.dtype) for pool in pools]
    in_memory, scalars = pl.BlockSpec(memory_space=pltpu.HBM), pl.BlockSpec(memory_space=pltpu.SMEM)

    def body(sources: Ref, targets: Ref, *refs: Ref) -> None:
        Pairs(sources, targets, refs[count : 2 * count], refs[2 * count : 3 * count], refs[-1]).copy()

    copied = pl.pallas_call(
        body,
        in_specs=[scalars, scalars, *[in_memory] * count],
        out_specs=[in_memory] * 2 * count,
        out_shape=[*updated, *gathered],
        scratch_shapes=[pltpu.SemaphoreType.DMA((count,))],
        input_output_aliases={2 + index: index for index in range(count)},
        interpret=interpret,
        name="copy_blocks",
    )(source, target, *pools)
    return replace(kv, data=copied[0], scales=None if kv.scales is None else copied[1])


@dataclass(frozen=True, slots=True)
class Pairs:
    """A layer's copies.

    source, target int32 [n], SMEM. pools: data and scales [blocks, ...]; gathered [n, ...]: where the sources wait for
    each other; both HBM. arrived: a semaphore a pool, whose copies are all of one size.
    """

    source: Ref
    target: Ref
    pools: Sequence[Ref]
    gathered: Sequence[Ref]
    arrived: Ref

    def copy(self) -> None:
        """All sources are read before any target is written."""
        self._all(self.reading)
        self._all(self.writing)

    def reading(self, pair: jax.Array) -> list[Any]:
        """The copies of a source, one a pool."""
        return self._copies([(pool.at[self.source[pair]], rows.at[pair]) for pool, rows in self._arrays()])

    def writing(self, pair: jax.Array) -> list[Any]:
        """The copies to a target."""
        return self._copies([(rows.at[pair], pool.at[self.target[pair]]) for pool, rows in self._arrays()])

    def _arrays(self) -> list[tuple[Ref, Ref]]:
        return list(zip(self.pools, self.gathered, strict=True))

    def _copies(self, ends: Sequence[tuple[Ref, Ref]]) -> list[Any]:
        return [pltpu.make_async_copy(*both, self.arrived.at[index]) for index, both in enumerate(ends)]

    def _all(self, copies: Callable[[jax.Array], list[Any]]) -> None:
        """The copies of all pairs, and their end."""
        count = self.source.shape[0]

        def each(pair: jax.Array, do: Callable[[Any], None]) -> None:
            def both() -> None:
                for copy in copies(pair):
                    do(copy)

            # Padding copies the null block onto itself, and several such copies at a time would write to one place.
            pl.when(self.source[pair] != self.target[pair])(both)

        def start(pair: jax.Array, _: None) -> None:
            pl.when(pair >= IN_FLIGHT)(lambda: each(pair - IN_FLIGHT, lambda copy: copy.wait()))
            each(pair, lambda copy: copy.start())

        lax.fori_loop(0, count, start, None)
        lax.fori_loop(max(count - IN_FLIGHT, 0), count, lambda pair, _: each(pair, lambda copy: copy.wait()), None)
