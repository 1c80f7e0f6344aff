"""Paged attention in plain XLA: what static shapes with dynamic trip counts have to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo.backend import AttentionMetadata, array_ops
from octavo.backend.tree import flatten, tree_map, unflatten
from octavo_xla.kv import PagedKV
from octavo_xla.ops.attention import CHUNK, TILE, paged_attention

BLOCK, KV_HEADS, GROUP, SIZE = 16, 2, 2, 32
TOKENS, SEQUENCES, WIDTH = 3 * TILE, 6, 40
SCALE = SIZE**-0.5


class Step:
    """Chunks (context, queries) in the given order, padded to one bucket, over a cache with NaN in all other slots."""

    def __init__(self, chunks: Sequence[tuple[int, int]], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        blocks = rng.permutation(np.arange(1, 1 + sum(-(-context // BLOCK) for context, _ in chunks)))
        self.pool = np.full((2, len(blocks) + 1, BLOCK, KV_HEADS, SIZE), np.nan, np.float32)
        self.q = rng.standard_normal((TOKENS, KV_HEADS * GROUP, SIZE)).astype(np.float32)
        self.tokens = sum(queries for _, queries in chunks)
        positions, slots, sequences = (np.zeros(TOKENS, np.int32) for _ in range(3))
        starts = np.full(SEQUENCES + 1, self.tokens, np.int32)
        contexts = np.zeros(SEQUENCES, np.int32)
        tables = np.zeros((SEQUENCES, WIDTH), np.int32)
        token = used = 0
        for row, (context, queries) in enumerate(chunks):
            count = -(-context // BLOCK)
            tables[row, :count] = blocks[used : used + count]
            used += count
            at = np.arange(context)
            shape = (2, context, KV_HEADS, SIZE)
            self.pool[:, tables[row, at // BLOCK], at % BLOCK] = rng.standard_normal(shape)
            starts[row], contexts[row] = token, context
            positions[token : token + queries] = np.arange(context - queries, context)
            sequences[token : token + queries] = row
            token += queries
        self.meta = AttentionMetadata(positions, slots, sequences, starts, contexts, tables)

    @property
    def kv(self) -> PagedKV:
        rows = np.concatenate([self.pool[0], self.pool[1]], axis=-1)  # [blocks, block_size, kv_heads, 2 * size]
        return PagedKV(jnp.asarray(rows.swapaxes(1, 2)), None, SIZE)

    def expected(self, **scoring: float) -> np.ndarray:
        return array_ops.paged_attention(self.q, self.pool, self.meta, SCALE, **scoring)[: self.tokens]


class Program:
    """`paged_attention` of one compilation for each structure of its arguments."""

    def __init__(self, **scoring: float) -> None:
        self.traces = 0
        self._scoring = scoring
        self._run = jax.jit(self._traced, static_argnums=0)

    def __call__(self, step: Step) -> np.ndarray:
        leaves, structure = flatten((step.q, step.kv, tree_map(jnp.asarray, step.meta)))
        return np.asarray(self._run(structure, leaves))[: step.tokens]

    def _traced(self, structure, leaves):
        self.traces += 1
        q, kv, meta = unflatten(structure, leaves)
        # Every step of these tests has the same pool, whatever it uses of it: its shape is not what is looked at.
        return paged_attention(q, kv, meta, SCALE, **self._scoring)


def with_pool_of(steps: Sequence[Step]) -> Sequence[Step]:
    """The same steps over pools of the same size."""
    blocks = max(step.pool.shape[1] for step in steps)
    for step in steps:
        missing = blocks - step.pool.shape[1]
        step.pool = np.pad(step.pool, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), constant_values=np.nan)
    return steps


LENGTHS = (
    [(1, 1)],
    [(CHUNK, 1), (CHUNK + 1, 1), (4 * CHUNK + 3, 1)],
    [(TILE + 1, TILE + 1), (CHUNK + TILE, 2)],
    [(7, 1), (3 * CHUNK, 2 * TILE), (2, 2), (9, 1)],
)


def test_one_program_serves_every_length():
    program = Program()
    for step in with_pool_of([Step(chunks, seed) for seed, chunks in enumerate(LENGTHS)]):
        np.testing.assert_allclose(program(step), step.expected(), atol=2e-6)
    assert program.traces == 1


@pytest.mark.parametrize("window", [1, 7, CHUNK, CHUNK + 1])
def test_chunks_before_the_window_are_left_out_and_nothing_else(window):
    program = Program(window=window)
    for step in with_pool_of([Step(chunks, seed) for seed, chunks in enumerate(LENGTHS)]):
        np.testing.assert_allclose(program(step), step.expected(window=window), atol=2e-6)


def test_sequences_of_one_query_may_stand_anywhere():
    step = Step([(5, 3), (40, 1), (TILE + 9, TILE + 9), (200, 1), (33, 1)])
    np.testing.assert_allclose(Program()(step), step.expected(), atol=2e-6)


def test_a_wider_block_table_changes_no_bit():
    step = Step([(300, 1), (70, 66)])
    wide = Step([(300, 1), (70, 66)])
    wide.meta = replace(wide.meta, block_tables=np.pad(wide.meta.block_tables, ((0, 0), (0, 1000))))
    np.testing.assert_array_equal(Program()(step), Program()(wide))


def test_a_context_as_wide_as_the_table_is_seen_to_its_end():
    step = Step([(WIDTH * BLOCK, 1), (WIDTH * BLOCK - 1, 5)])
    np.testing.assert_allclose(Program()(step), step.expected(), atol=2e-6)


def test_a_step_of_decodes_alone_has_no_loop_over_tiles():
    step = Step([(300, 1), (70, 1)])
    assert loops(step) == 4  # decodes, and their chunks; tiles, and their chunks
    step.meta = replace(step.meta, decode_only=True)
    assert loops(step) == 2
    np.testing.assert_allclose(Program()(step), step.expected(), atol=2e-6)


def loops(step: Step) -> int:
    meta = tree_map(jnp.asarray, step.meta)

    def run(q: jax.Array, data: jax.Array) -> jax.Array:
        return paged_attention(q, PagedKV(data, None, SIZE), meta, SCALE)

    return str(jax.make_jaxpr(run)(step.q, step.kv.data)).count("while[")
