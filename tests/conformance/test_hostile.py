"""The hostile harness itself: garbage wherever nobody wrote, and no block with two owners unless it is shared."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backend import Device, DeviceConfig, DType, KVLayout
from octavo.backend.discovery import open_device
from octavo_conformance.hostile import Chunk, HostileCache, garbage, lay_out
from octavo_conformance.oracles.attention import attention

SIZE = 4

chunks = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda two: Chunk(max(two), min(two))),
    min_size=1,
    max_size=8,
)


@pytest.fixture(params=["reference", "cpu"])
def device(request: pytest.FixtureRequest) -> Device:
    return open_device(DeviceConfig(backend=request.param)).device


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def cache_on(device: Device, rng: np.random.Generator, blocks: int = 7, layers: int = 2) -> HostileCache:
    return HostileCache(device, KVLayout(layers, 2, 16, SIZE, DType.FLOAT32), blocks, rng)


def is_garbage(values: np.ndarray) -> np.ndarray:
    """Per row. A key of NaN may have a kernel skip the slot, and then its row is 0."""
    return np.all(np.isnan(values) | (np.abs(values) > 1e20) | (values == 0), axis=-1)


# ------------------------------------------------------------------------------------------------------------ layout


@given(chunks, st.sampled_from([1, 2, 16, 64]), st.integers(0, 4), st.integers(0, 2**16))
@settings(deadline=None, max_examples=50)
def test_no_block_has_two_owners_and_nobody_owns_the_null_block(chunks, block_size, padding, seed):
    rng = np.random.default_rng(seed)
    batch = lay_out(rng, chunks, block_size, pad_tokens=padding, pad_sequences=padding, pad_blocks=padding)
    owners = Counter(block for table in batch.tables for block in table)
    assert 0 not in owners
    assert set(owners.values()) == {1}
    assert max(owners) < batch.num_blocks
    assert len(batch.free_blocks) >= 4
    assert not set(batch.free_blocks) & set(owners)


@given(chunks, st.sampled_from([1, 2, 16, 64]), st.integers(0, 4))
@settings(deadline=None, max_examples=50)
def test_each_token_of_a_step_stands_where_its_sequence_has_it(chunks, block_size, padding):
    rng = np.random.default_rng(0)
    batch = lay_out(rng, chunks, block_size, pad_tokens=padding, pad_sequences=padding, pad_blocks=padding)
    meta = batch.inputs.attention
    assert sorted(batch.chunks, key=repr) == sorted(chunks, key=repr)
    assert batch.tokens == sum(chunk.queries for chunk in chunks) == meta.query_starts[-1]
    decodes = [chunk.queries == 1 for chunk in batch.chunks]
    assert decodes == sorted(decodes, reverse=True)
    assert meta.decode_only == all(decodes)
    for sequence, (chunk, table) in enumerate(zip(batch.chunks, batch.tables, strict=True)):
        rows = batch.rows(sequence)
        positions = np.arange(chunk.context - chunk.queries, chunk.context)
        np.testing.assert_array_equal(meta.positions[rows], positions)
        np.testing.assert_array_equal(meta.slots[rows], batch.slots(sequence, positions))
        assert (meta.sequences[rows] == sequence).all()
        assert meta.context_lengths[sequence] == chunk.context
        np.testing.assert_array_equal(meta.block_tables[sequence, : len(table)], table)
        assert not meta.block_tables[sequence, len(table) :].any()
    padded = slice(batch.tokens, None)
    assert not meta.slots[padded].any()
    assert not meta.positions[padded].any()
    assert not meta.context_lengths[len(chunks) :].any()
    assert all(leaf.dtype == np.int32 for leaf in (meta.positions, meta.slots, meta.block_tables, meta.query_starts))


def test_a_shared_prefix_is_the_same_blocks_and_the_rest_is_not(rng):
    batch = lay_out(rng, [Chunk(20, 1), Chunk(18, 1), Chunk(30, 9)], SIZE, shared={1: (0, 4), 2: (0, 2)})
    first, second, third = batch.tables
    assert second[:4] == first[:4]
    assert third[:2] == first[:2]
    owners = Counter(first) + Counter(second[4:]) + Counter(third[2:])
    assert set(owners.values()) == {1}


def test_a_prefix_longer_than_its_owner_is_refused(rng):
    with pytest.raises(ValueError, match="cannot share 3 blocks of sequence 0"):
        lay_out(rng, [Chunk(8, 1), Chunk(30, 1)], SIZE, shared={1: (0, 3)})


def test_a_chunk_with_more_queries_than_tokens_is_refused():
    with pytest.raises(ValueError, match="1 to 3 queries"):
        Chunk(3, 4)


# ----------------------------------------------------------------------------------------------------------- garbage


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2])
def test_garbage_is_nan_or_large_in_every_dtype(rng, dtype):
    values = garbage(rng, (200, 8), dtype).astype(np.float32)
    nan = np.isnan(values)
    assert 50 < nan[:, 0].sum() < 150
    assert np.isfinite(values[~nan]).all()
    assert np.abs(values[~nan]).min() > 100


def test_garbage_for_integers_keeps_to_their_range(rng):
    values = garbage(rng, (50, 8), DType.FLOAT32, through=DType.INT8)
    assert np.abs(values).max() <= 127


# ------------------------------------------------------------------------------------------------------------- cache


def test_a_new_cache_holds_garbage_in_every_slot_of_every_layer(device, rng):
    cache = cache_on(device, rng)
    for layer in range(2):
        assert is_garbage(cache.read_values(layer, range(7 * SIZE))).all()


def test_what_is_written_is_read_back_and_the_slots_beside_it_stay_garbage(device, rng):
    cache = cache_on(device, rng)
    k, v = rng.standard_normal((2, 3, 2, 16)).astype(np.float32)
    slots = np.array([9, 4, 21], np.int32)
    cache.write(1, k, v, slots)
    np.testing.assert_array_equal(cache.read_values(1, slots), v)
    others = sorted(set(range(7 * SIZE)) - set(slots.tolist()))
    assert is_garbage(cache.read_values(1, others)).all()
    assert is_garbage(cache.read_values(0, slots)).all()


def test_a_poisoned_block_is_garbage_again(device, rng):
    cache = cache_on(device, rng)
    k, v = rng.standard_normal((2, 2 * SIZE, 2, 16)).astype(np.float32)
    cache.write(0, k, v, np.arange(SIZE, 3 * SIZE, dtype=np.int32))
    cache.poison([2])
    np.testing.assert_array_equal(cache.read_values(0, range(SIZE, 2 * SIZE)), v[:SIZE])
    assert is_garbage(cache.read_values(0, range(2 * SIZE, 3 * SIZE))).all()


def test_a_copied_block_is_read_back_in_every_layer(device, rng):
    cache = cache_on(device, rng)
    k, v = rng.standard_normal((2, SIZE, 2, 16)).astype(np.float32)
    for layer in range(2):
        cache.write(layer, k, v, np.arange(SIZE, 2 * SIZE, dtype=np.int32))
    cache.copy([1], [5])
    for layer in range(2):
        np.testing.assert_array_equal(cache.read_values(layer, range(5 * SIZE, 6 * SIZE)), v)


@pytest.mark.parametrize("slot", ["the tail of the last block", "a spare block", "the null block"])
def test_attention_over_one_slot_that_is_not_owned_is_seen(device, rng, slot):
    """A wrong kernel played by wrong metadata: one slot is read that is not owned, and the result is off."""
    batch = lay_out(rng, [Chunk(6, 1)], SIZE)
    cache = cache_on(device, rng, batch.num_blocks)
    k, v = rng.standard_normal((2, 6, 2, 16)).astype(np.float32)
    cache.write(0, k, v, batch.slots(0, range(6)))
    q = rng.standard_normal((1, 2, 16)).astype(np.float32)
    expected = attention(q, k, v, 0.25)
    np.testing.assert_allclose(cache.attend(0, batch, q, 0.25), expected, rtol=1e-5, atol=1e-6)
    meta = batch.inputs.attention
    if slot == "the tail of the last block":
        meta.context_lengths[0] = 7
        meta.positions[0] = 6
    else:
        meta.block_tables[0, 1] = batch.free_blocks[0 if slot == "the null block" else 1]
    got = cache.attend(0, batch, q, 0.25)
    off = ~np.isfinite(got) | (np.abs(got - expected) > 1e-2)
    assert off.any()


# ------------------------------------------------------------------------------------------------------------ oracle


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_the_oracle_is_torch_attention_in_float64(rng, window, softcap, with_sinks):
    torch = pytest.importorskip("torch")
    queries, context = 7, 19
    q, k, v = (rng.standard_normal((n, heads, 8)) for n, heads in ((queries, 6), (context, 2), (context, 2)))
    sinks = rng.standard_normal(6) if with_sinks else None
    q_, k_, v_ = (torch.from_numpy(side) for side in (q, k, v))
    scores = torch.einsum("qhd,khd->hqk", q_, k_.repeat_interleave(3, dim=1)) * 0.3
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    distance = torch.arange(context - queries, context)[:, None] - torch.arange(context)
    scores[:, (distance < 0) | (distance >= (window or context))] = -torch.inf
    if sinks is not None:
        scores = torch.cat([scores, torch.from_numpy(sinks)[:, None, None].expand(6, queries, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :context]
    expected = torch.einsum("hqk,khd->qhd", weights, v_.repeat_interleave(3, dim=1))
    np.testing.assert_allclose(attention(q, k, v, 0.3, window, softcap, sinks), expected.numpy(), atol=1e-12)


def test_the_oracle_ignores_what_no_query_sees(rng):
    q, k, v = rng.standard_normal((3, 9, 2, 8))
    whole = attention(q[-2:], k, v, 0.3, window=3)
    k[:5], v[:5] = np.nan, np.nan
    np.testing.assert_array_equal(attention(q[-2:], k, v, 0.3, window=3), whole)
