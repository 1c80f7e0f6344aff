"""Paged attention, write_kv and copy_blocks against float64 loops over each token's own context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backend import AttentionMetadata, DType, Ops, RotaryTable, array_ops

OPS = Ops()


@dataclass(frozen=True)
class Batch:
    """A mixed step over a pool in which every slot that no sequence owns, the null block included, is NaN."""

    meta: AttentionMetadata
    pool: np.ndarray  # [2, blocks, block_size, kv_heads, head_size]
    contexts: list[np.ndarray]  # per sequence [2, context, kv_heads, head_size]
    real_tokens: int


def make_batch(
    rng: np.random.Generator,
    sequences: list[tuple[int, int]],
    block_size: int = 4,
    kv_heads: int = 2,
    head_size: int = 8,
    padding: int = 0,
) -> Batch:
    """A step of (context length, queries) pairs, their blocks shuffled over the pool, padded as the runner pads."""
    sequences = sorted(sequences, key=lambda sequence: sequence[1] > 1)  # decodes first
    needed = [-(-context // block_size) for context, _ in sequences]
    free = 1 + rng.permutation(sum(needed) + 3)
    pool = np.full((2, len(free) + 1, block_size, kv_heads, head_size), np.nan, np.float32)
    tokens, rows = sum(queries for _, queries in sequences) + padding, len(sequences) + padding
    positions, slots, owner = (np.zeros(tokens, np.int32) for _ in range(3))
    tables = np.zeros((rows, max(needed) + padding), np.int32)
    lengths, starts = np.zeros(rows, np.int32), np.zeros(rows + 1, np.int32)
    contexts, token = [], 0
    for row, ((context, queries), blocks) in enumerate(zip(sequences, needed, strict=True)):
        tables[row, :blocks], free = free[:blocks], free[blocks:]
        content = rng.standard_normal((2, context, kv_heads, head_size)).astype(np.float32)
        for position in range(context):
            pool[:, tables[row, position // block_size], position % block_size] = content[:, position]
        contexts.append(content)
        starts[row], lengths[row] = token, context
        for position in range(context - queries, context):
            positions[token], owner[token] = position, row
            slots[token] = tables[row, position // block_size] * block_size + position % block_size
            token += 1
    starts[len(sequences) :] = token
    return Batch(AttentionMetadata(positions, slots, owner, starts, lengths, tables), pool, contexts, token)


def attention_oracle(
    q: np.ndarray,
    batch: Batch,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: np.ndarray | None,
) -> np.ndarray:
    """float64 softmax over the attended positions of each real token, one head at a time."""
    heads = q.shape[1]
    result = np.empty((batch.real_tokens, *q.shape[1:]))
    for token in range(batch.real_tokens):
        context = batch.contexts[batch.meta.sequences[token]].astype(np.float64)
        last = int(batch.meta.positions[token])
        first = 0 if window is None else max(0, last - window + 1)
        for head in range(heads):
            keys, values = context[:, first : last + 1, head // (heads // context.shape[2])]
            scores = keys @ q[token, head].astype(np.float64) * scale
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            sink = [] if sinks is None else [float(sinks[head])]
            odds = np.exp(np.append(scores, sink) - max([*scores, *sink]))
            result[token, head] = odds[: len(scores)] @ values / odds.sum()
    return result


ragged = st.lists(
    st.tuples(st.integers(1, 21), st.integers(1, 21)).map(lambda s: (max(s), min(s))), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(
    sequences=ragged,
    block_size=st.sampled_from([1, 4, 16]),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3, 8]),
    padding=st.sampled_from([0, 3]),
    window=st.sampled_from([None, 1, 5]),
    softcap=st.sampled_from([None, 2.0]),
    with_sinks=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_attention_equals_the_oracle_and_sees_no_slot_of_others(
    any_library, sequences, block_size, kv_heads, group, padding, window, softcap, with_sinks, seed
):
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, sequences, block_size, kv_heads, padding=padding)
    q = rng.standard_normal((len(batch.meta.positions), kv_heads * group, 8)).astype(np.float32)
    sinks = rng.standard_normal(kv_heads * group).astype(np.float32) if with_sinks else None
    q_, pool, meta, sinks_ = any_library.put((q, batch.pool, batch.meta, sinks))
    result = any_library.get(OPS.paged_attention(q_, pool, meta, 0.5, window, softcap, sinks_))
    expected = attention_oracle(q, batch, 0.5, window, softcap, sinks)
    np.testing.assert_allclose(result[: batch.real_tokens], expected, atol=2e-5, rtol=2e-5)


def test_attention_in_several_passes_equals_one_pass(library, monkeypatch):
    rng = np.random.default_rng(5)
    batch = make_batch(rng, [(40, 1), (33, 17), (64, 64)])
    q = rng.standard_normal((batch.real_tokens, 4, 8)).astype(np.float32)
    monkeypatch.setattr(array_ops, "KEYS_PER_PASS", 8)
    monkeypatch.setattr(array_ops, "TOKENS_PER_PASS", 7)
    q_, pool, meta = library.put((q, batch.pool, batch.meta))
    result = library.get(OPS.paged_attention(q_, pool, meta, 0.5, window=20, softcap=3.0))
    np.testing.assert_allclose(result, attention_oracle(q, batch, 0.5, 20, 3.0, None), atol=2e-5)


def test_attention_of_a_token_does_not_depend_on_its_neighbours():
    """Bit for bit: the passes are cut by slots and not by the batch."""
    rng = np.random.default_rng(6)
    batch = make_batch(rng, [(300, 1), (290, 20), (280, 280)])
    q = rng.standard_normal((batch.real_tokens, 4, 8)).astype(np.float32)
    together = OPS.paged_attention(q, batch.pool, batch.meta, 0.5)
    alone = AttentionMetadata(
        batch.meta.positions[:1],
        batch.meta.slots[:1],
        batch.meta.sequences[:1],
        batch.meta.query_starts[:2],
        batch.meta.context_lengths[:1],
        batch.meta.block_tables[:1],
        decode_only=True,
    )
    np.testing.assert_array_equal(OPS.paged_attention(q[:1], batch.pool, alone, 0.5), together[:1])


def test_attention_in_bfloat16_is_summed_in_float32(library):
    rng = np.random.default_rng(7)
    batch = make_batch(rng, [(200, 1), (50, 9)])
    half = DType.BFLOAT16.numpy
    q = rng.standard_normal((batch.real_tokens, 6, 8)).astype(half)
    rounded = Batch(batch.meta, batch.pool.astype(half), [c.astype(half) for c in batch.contexts], batch.real_tokens)
    q_, pool, meta = library.put((q, rounded.pool, batch.meta))
    result = library.get(OPS.paged_attention(q_, pool, meta, 0.5)).astype(np.float64)
    expected = attention_oracle(q, rounded, 0.5, None, None, None)
    # One rounding to bfloat16 at the end: 2**-9 of the value.
    np.testing.assert_allclose(result, expected, rtol=2**-8, atol=1e-4)


def test_a_step_without_tokens_gives_no_rows(library):
    meta = AttentionMetadata(*(np.zeros(shape, np.int32) for shape in (0, 0, 0, 2, 1, (1, 1))))
    q, pool, meta = library.put((np.zeros((0, 4, 8), np.float32), np.zeros((2, 2, 4, 2, 8), np.float32), meta))
    assert OPS.paged_attention(q, pool, meta, 0.5).shape == (0, 4, 8)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16])
def test_written_keys_and_values_stand_in_their_slots_and_nowhere_else(library, dtype):
    rng = np.random.default_rng(8)
    pool = np.full((2, 5, 4, 2, 8), np.nan, np.float32).astype(dtype.numpy)
    slots = np.array([9, 4, 19, 0, 0, 10], np.int32)  # two padding tokens share slot 0
    k, v = rng.standard_normal((2, 6, 2, 8)).astype(np.float32)
    before, k_, v_, slots_ = library.put((pool, k, v, slots))
    written = library.get(OPS.write_kv(before, k_, v_, slots_)).astype(np.float32).reshape(2, 20, 2, 8)
    for token in (0, 1, 2, 5):
        for side, source in enumerate((k, v)):
            expected = source[token].astype(dtype.numpy).astype(np.float32)
            np.testing.assert_array_equal(written[side, slots[token]], expected)
    untouched = sorted(set(range(20)) - set(slots.tolist()))
    assert np.isnan(written[:, untouched]).all()


def test_rotary_write_kv_is_rotary_and_then_write_kv(library):
    rng = np.random.default_rng(9)
    q, k, v = (rng.standard_normal((3, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    positions, slots = np.array([0, 7, 3], np.int32), np.array([4, 11, 6], np.int32)
    table, pool = rng.standard_normal((8, 8)).astype(np.float32), np.zeros((2, 3, 4, 2, 8), np.float32)
    q_, k_, v_, positions_, slots_, table_ = library.put((q, k, v, positions, slots, RotaryTable(table)))
    turned, fused = OPS.rotary_write_kv(q_, k_, v_, positions_, table_, library.put(pool), slots_)
    plain_q, plain_k = OPS.rotary(q_, k_, positions_, table_)
    plain = OPS.write_kv(library.put(pool), plain_k, v_, slots_)
    np.testing.assert_array_equal(library.get(turned), library.get(plain_q))
    np.testing.assert_array_equal(library.get(fused), library.get(plain))


def test_a_fused_operation_calls_the_plain_ones_that_a_backend_overrode():
    class Counting(Ops):
        calls: tuple[str, ...] = ()

        def write_kv(self, kv, k, v, slots):
            self.calls += ("write_kv",)
            return super().write_kv(kv, k, v, slots)

    ops, one = Counting(), np.zeros((1, 1, 2), np.float32)
    table = RotaryTable(np.ones((1, 2), np.float32))
    ops.rotary_write_kv(
        one,
        one,
        one,
        np.zeros(1, np.int32),
        table,
        np.zeros((2, 1, 1, 1, 2), np.float32),
        np.zeros(1, np.int32),
    )
    assert ops.calls == ("write_kv",)


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=6, unique_by=lambda p: p[1])
)
def test_copied_blocks_are_read_before_any_is_written(library, pairs):
    """Chains (1 to 2, 2 to 3) and swaps (1 to 2, 2 to 1) copy what stood there before; (0, 0) is padding."""
    rng = np.random.default_rng(10)
    layers = [rng.standard_normal((2, 8, 4, 2, 8)).astype(np.float32) for _ in range(2)]
    source, target = np.array([(0, 0), *pairs, (0, 0)], np.int32).T
    kv, source_, target_ = library.put(([layer.copy() for layer in layers], source.copy(), target.copy()))
    copied = OPS.copy_blocks(kv, source_, target_)
    for before, after in zip(layers, copied, strict=True):
        expected = before.copy()
        for old, new in pairs:
            expected[:, new] = before[:, old]
        np.testing.assert_array_equal(library.get(after), expected)
