"""The small values of the contract: dtypes, tensor sources and their shards, KV layout, the single shard, the sizes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from octavo.backend import ArraySource, Collectives, ConcatenatedSource, Device, DType, KVLayout, Ops
from octavo.backend.version import accepts


def public_methods(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


def test_the_contract_has_26_methods_of_which_5_are_required():
    """docs/decisions/0001, 0012 and the vendor guide say so; a method more is a decision, not an accident."""
    assert Device.__abstractmethods__ == {"upload", "download", "load", "allocate_kv", "memory"}
    assert len(public_methods(Device)) == 10
    assert len(public_methods(Ops)) == 14
    assert len(public_methods(Collectives)) == 2


@pytest.mark.parametrize(("version", "accepted"), [(0, False), (1, True), (2, False)])
def test_plugins_of_this_version_are_accepted(version, accepted):
    assert accepts(version) is accepted


@pytest.mark.parametrize("dtype", DType)
def test_every_dtype_is_a_numpy_dtype_of_its_name_and_back(dtype):
    array = np.zeros(3, dtype.numpy)
    assert array.dtype.name == dtype.value
    assert array.itemsize == dtype.itemsize
    assert DType.of(array) is dtype


def test_bfloat16_is_that_of_ml_dtypes():
    assert DType.BFLOAT16.numpy == np.dtype(ml_dtypes.bfloat16)
    assert DType.BFLOAT16.itemsize == 2


def test_an_array_that_does_not_cross_the_contract_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"Arrays of int64 do not cross the contract; float32, .*uint8 do\."):
        DType.of(np.zeros(1, np.int64))


def source(name: str, rows: int, columns: int = 4, axis: int | None = 0, dtype: type = np.float32) -> ArraySource:
    values = np.arange(rows * columns).reshape(rows, columns) + (ord(name[0]) * 100)
    return ArraySource(name, values.astype(dtype), axis)


@pytest.mark.parametrize("axis", [0, 1])
def test_shards_of_a_tensor_put_together_are_the_tensor(axis):
    whole = source("w", 8, 12, axis)
    shards = [whole.shard(rank, 4) for rank in range(4)]
    assert {shard.shape for shard in shards} == {(2, 12) if axis == 0 else (8, 3)}
    np.testing.assert_array_equal(np.concatenate([shard.read() for shard in shards], axis), whole.read())


def test_a_tensor_without_a_shard_axis_is_whole_on_every_shard():
    whole = source("w", 3, axis=None)
    assert whole.shard(1, 2).shape == (3, 4)


def test_a_tensor_that_does_not_divide_names_the_sizes_that_would_do():
    with pytest.raises(ValueError, match=r"v\.weight: axis 0 has 6 entries and .* 4 shards; 1, 2, 3 would do\."):
        source("v.weight", 6).shard(0, 4)


def test_a_fused_tensor_is_sharded_part_by_part():
    """Shard 1 of q, k, v holds the second share of each, in order, and not the second half of all of them."""
    q, k, v = source("q", 8), source("k", 4), source("v", 4)
    fused = ConcatenatedSource("qkv", [q, k, v])
    assert fused.shape == (16, 4)
    np.testing.assert_array_equal(fused.read(), np.concatenate([q.read(), k.read(), v.read()]))
    shard = fused.shard(1, 2)
    assert shard.shape == (8, 4)
    np.testing.assert_array_equal(shard.read(), np.concatenate([q.read()[4:], k.read()[2:], v.read()[2:]]))


def test_a_fused_tensor_that_does_not_divide_names_the_part():
    with pytest.raises(ValueError, match=r"k: axis 0 has 3 entries .* 2 shards; 1 would do\."):
        ConcatenatedSource("qkv", [source("q", 8), source("k", 3)]).shard(0, 2)


def test_parts_of_different_dtypes_are_read_as_float32():
    fused = ConcatenatedSource("ab", [source("a", 2, dtype=np.float16), source("b", 2, dtype=ml_dtypes.bfloat16)])
    assert fused.dtype is DType.FLOAT32
    assert fused.read().dtype == np.float32


def test_parts_of_different_widths_are_refused_by_name():
    with pytest.raises(ValueError, match=r"qk: its parts differ .*: q \(8, 4\), k \(2, 5\)\."):
        ConcatenatedSource("qk", [source("q", 8), source("k", 2, 5)])


def test_a_block_takes_keys_and_values_of_all_layers():
    layout = KVLayout(layers=30, kv_heads=3, head_size=64, block_size=16, dtype=DType.BFLOAT16)
    assert layout.block_bytes == 2 * 30 * 3 * 64 * 16 * 2


def test_one_shard_reduces_and_gathers_to_itself():
    collectives, x = Collectives(), np.arange(6.0).reshape(2, 3)
    assert (collectives.rank, collectives.size) == (0, 1)
    np.testing.assert_array_equal(collectives.all_reduce(x), x)
    np.testing.assert_array_equal(collectives.all_gather(x, axis=1), x)
