"""The Pallas kernel: one tile of queries after another over the chunks of keys and values that its sequence has.

    grid (cores, items)           an item of the work list: a tile of queries and one sequence
      loop over chunks            a chunk: some blocks of the sequence, all KV heads
        fetch a later chunk       copies from HBM, up to `buffers` - 1 chunks ahead, across items
        wait for this one
        loop over KV heads        scores, online softmax, weighted values

Fetching runs ahead of the work by a cursor of its own, so that a batch of short contexts keeps the memory as busy as a
single long one. A tile of queries and its result travel by Pallas's own pipeline: the items of a tile follow each
other, and it stays where it is between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from octavo_xla.kernels.attention.sizes import Geometry, TileSizes
from octavo_xla.kernels.attention.softmax import LOWEST, OnlineSoftmax, product
from octavo_xla.kernels.attention.source import Buffers, Source
from octavo_xla.kernels.attention.work import WorkList, most_items
from octavo_xla.kernels.tiling import Ref
from octavo_xla.kv import LANES, PagedKV


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a score is made of a query and a key; see `Ops.paged_attention`."""

    scale: float
    window: int | None = None
    softcap: float | None = None


def run(
    geometry: Geometry,
    sizes: TileSizes,
    scoring: Scoring,
    work: WorkList,
    tables: jax.Array,
    queries: jax.Array,
    kv: PagedKV,
    sinks: jax.Array | None,
    interpret: Any = False,
) -> jax.Array:
    """Attention of tiles of queries.

    queries [tiles, kv_heads, rows, width]: row t * group + g is token t of the tile, head g of the KV head's group.
    tables int32 [sequences, blocks]. sinks float32 [kv_heads, rows], or None. Returns an array like queries; rows of
    tokens that no item names hold anything.
    """
    tiles, heads, rows, width = queries.shape
    cores = work.first.shape[0] - 1
    share = -(-tiles // cores)

    def tile_of(core: jax.Array, step: jax.Array, first: Ref, tile: Ref, *_: Ref) -> tuple[Any, ...]:
        # A core that has run out of items stays on its last tile, and never on another core's.
        item = jnp.minimum(first[core] + step, jnp.maximum(first[core + 1] - 1, 0))
        return jnp.clip(tile[item], core * share, jnp.minimum((core + 1) * share, tiles) - 1), 0, 0, 0

    tile = pl.BlockSpec((None, heads, rows, width), tile_of)
    in_memory = pl.BlockSpec(memory_space=pltpu.HBM)
    inputs, specs = [queries, kv.data], [tile, in_memory]
    if kv.scales is not None:
        inputs, specs = [*inputs, kv.scales], [*specs, in_memory]
    if sinks is not None:
        inputs = [*inputs, jnp.broadcast_to(sinks[..., None], (heads, rows, LANES))]
        specs = [*specs, pl.BlockSpec((heads, rows, LANES), lambda *_: (0, 0, 0))]
    buffers, state = Buffers.shapes(geometry, sizes), OnlineSoftmax.shapes(geometry, sizes)
    scalars = (*work, tables.reshape(-1))

    def body(*refs: Ref) -> None:
        given = iter(refs)
        listed, table = WorkList(*(next(given) for _ in work)), next(given)
        q, data = next(given), next(given)
        scales = None if kv.scales is None else next(given)
        sink = None if sinks is None else next(given)
        out, held = next(given), Buffers(*(next(given) for _ in buffers))
        source = Source(geometry, sizes, listed, table, tables.shape[1], data, scales, held)
        _item(source, scoring, q, sink, out, OnlineSoftmax(*given))

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(cores, most_items(share, sizes.tokens, tables.shape[0])),
            in_specs=specs,
            out_specs=tile,
            scratch_shapes=[*buffers, *state],
        ),
        out_shape=jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="paged_attention_of_tokens" if sizes.tokens == 1 else "paged_attention_of_tiles",
    )(*scalars, *inputs)


def _item(source: Source, scoring: Scoring, q: Ref, sinks: Ref | None, out: Ref, softmax: OnlineSoftmax) -> None:
    """One step of the grid."""
    work, geometry = source.work, source.geometry
    core, step = pl.program_id(0), pl.program_id(1)
    item, end = work.first[core] + step, work.first[core + 1]

    def work_through() -> None:
        softmax.reset(sinks)

        def one(chunk: jax.Array, _: None) -> None:
            source.fetch(end)
            buffer = source.receive(item, chunk)
            position = work.position[item] - source.first_key(item, chunk)
            for head in range(geometry.kv_heads):
                _attend(source, scoring, position, head, buffer, q, softmax)

        lax.fori_loop(0, source.chunks(item), one, None)
        for head in range(geometry.kv_heads):
            result = softmax.result(head).astype(out.dtype)
            row = lax.broadcasted_iota(jnp.int32, result.shape, 0)
            first, last = work.rows_from[item] * geometry.group, work.rows_to[item] * geometry.group
            # The tile's other rows belong to other sequences and stay what they are.
            out[head] = jnp.where((row >= first) & (row < last), result, out[head])

    pl.when(step == 0)(lambda: source.open(item, end))
    pl.when(item < end)(work_through)


def _attend(
    source: Source,
    scoring: Scoring,
    position: jax.Array,
    head: int,
    buffer: jax.Array,
    q: Ref,
    softmax: OnlineSoftmax,
) -> None:
    """A chunk's keys and values of one KV head. position: of the tile's token 0, counted from the chunk's first key."""
    geometry = source.geometry
    keys, values = source.keys_and_values(buffer, head)
    scores = product(q[head].astype(keys.dtype), keys, contract=1) * scoring.scale  # [rows, keys]
    scales = source.scales_of(head)
    if scales is not None:
        scores = scores * scales[0]
    if scoring.softcap is not None:
        scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
    key, at = lax.broadcasted_iota(jnp.int32, scores.shape, 1), position
    if source.sizes.tokens > 1:
        at = at + lax.div(lax.broadcasted_iota(jnp.int32, scores.shape, 0), geometry.group)
    seen = key <= at
    if scoring.window is not None:
        seen = seen & (key > at - scoring.window)
    softmax.add(head, jnp.where(seen, scores, LOWEST), values, None if scales is None else scales[1])
