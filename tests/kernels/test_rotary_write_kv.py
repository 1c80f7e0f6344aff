"""Rotary embedding and the KV write, beyond conformance: bits of scaled entries, strides, and what is left alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from octavo.backend import RotaryTable
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.rotary_write_kv import rotary, rotary_write_kv, write_kv
from octavo_torch.kernels.scaled_kv import FORMATS

BLOCKS, BLOCK_SIZE, KV_HEADS = 5, 4, 2
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, *FORMATS)


def cache(dtype: torch.dtype, head_size: int) -> PagedKV:
    """Bytes of 0x11 everywhere: a number in every dtype, and a pattern that shows where it was overwritten."""
    shape = (BLOCKS, BLOCK_SIZE, KV_HEADS, head_size)

    def side() -> torch.Tensor:
        return torch.full((*shape[:-1], head_size * dtype.itemsize), 0x11, dtype=torch.uint8).view(dtype)

    scales = [torch.ones(shape[:-1]) if dtype in FORMATS else None for _ in range(2)]
    return PagedKV(side(), side(), *scales)


def tensors(kv: PagedKV) -> list[torch.Tensor]:
    return [part for part in (kv.keys, kv.values, kv.key_scales, kv.value_scales) if part is not None]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Five tokens, the last two of them padding in slot 0, cut from one fused projection of NaN and numbers."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    table: RotaryTable


def tokens(dtype: torch.dtype, head_size: int, rotary_size: int, interleaved: bool) -> Tokens:
    generator = torch.Generator().manual_seed(head_size)
    qkv = torch.randn((5, 3 + 2 * KV_HEADS, head_size), generator=generator).to(dtype)
    qkv[3:] = torch.nan
    q, k, v = qkv.split((3, KV_HEADS, KV_HEADS), dim=1)
    angles = torch.rand((20, rotary_size // 2), generator=generator) * 6
    table = RotaryTable(torch.cat((angles.cos(), angles.sin()), -1), interleaved)
    positions = torch.tensor([19, 0, 7, 0, 0], dtype=torch.int32)
    return Tokens(q, k, v, positions, torch.tensor([11, 4, 17, 0, 0], dtype=torch.int32), table)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize(("head_size", "rotary_size", "interleaved"), [(64, 64, False), (40, 16, True)])
def test_the_fused_kernel_gives_the_bits_of_rotary_and_then_write(
    runtime: KernelRuntime, kv_dtype: torch.dtype, head_size: int, rotary_size: int, interleaved: bool
) -> None:
    given = tokens(torch.bfloat16, head_size, rotary_size, interleaved)
    fused, plain = cache(kv_dtype, head_size), cache(kv_dtype, head_size)
    q = rotary_write_kv(runtime, given.q, given.k, given.v, given.positions, given.table, fused, given.slots)
    rotated_q, rotated_k = rotary(runtime, given.q, given.k, given.positions, given.table)
    write_kv(runtime, plain, rotated_k, given.v, given.slots)
    assert same_bits(q, rotated_q)
    for one, other in zip(tensors(fused), tensors(plain), strict=True):
        assert same_bits(one[1:], other[1:])  # block 0 takes the padding tokens and may hold anything


@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
def test_no_other_slot_is_touched(runtime: KernelRuntime, kv_dtype: torch.dtype) -> None:
    given, kv = tokens(torch.float32, 40, 16, False), cache(kv_dtype, 40)
    before = [part.clone() for part in tensors(kv)]
    rotary_write_kv(runtime, given.q, given.k, given.v, given.positions, given.table, kv, given.slots)
    others = [slot for slot in range(1, BLOCKS * BLOCK_SIZE) if slot not in given.slots.tolist()]
    for part, old in zip(tensors(kv), before, strict=True):
        assert same_bits(part.flatten(0, 1)[others], old.flatten(0, 1)[others])
        assert not same_bits(part.flatten(0, 1)[given.slots[:3].long()], old.flatten(0, 1)[given.slots[:3].long()])


def test_keys_and_values_may_lie_in_any_order(runtime: KernelRuntime) -> None:
    """Keys head by head within a block, values slot by slot within a head of the whole cache."""
    given, plain = tokens(torch.float32, 40, 40, False), cache(torch.float32, 40)
    keys = torch.zeros((BLOCKS, KV_HEADS, BLOCK_SIZE, 40)).permute(0, 2, 1, 3)
    values = torch.zeros((KV_HEADS, BLOCKS, BLOCK_SIZE, 40)).permute(1, 2, 0, 3)
    write_kv(runtime, PagedKV(keys, values), given.k, given.v, given.slots)
    write_kv(runtime, plain, given.k, given.v, given.slots)
    for slot in given.slots[:3].tolist():
        block, offset = divmod(slot, BLOCK_SIZE)
        assert torch.equal(keys[block, offset], plain.keys[block, offset])
        assert torch.equal(values[block, offset], plain.values[block, offset])


@pytest.mark.parametrize("kv_dtype", FORMATS, ids=str)
def test_entries_are_the_nearest_numbers_of_the_scaled_dtype(runtime: KernelRuntime, kv_dtype: torch.dtype) -> None:
    """Every number of the dtype, every middle of two and their neighbours, in heads whose scale is 1."""
    largest = FORMATS[kv_dtype].largest
    every = torch.arange(256, dtype=torch.uint8).view(kv_dtype).float()
    every = every[every.abs() <= largest].unique()
    middles = (every[1:] + every[:-1]) / 2
    entries = torch.cat([every, middles, middles.nextafter(every[1:]), middles.nextafter(every[:-1])])
    heads = -(-len(entries) // 255)
    rows = torch.zeros(heads * 255)
    rows[: len(entries)] = entries
    k = torch.cat([rows.view(heads, 1, 255), torch.full((heads, 1, 1), largest)], -1)
    slots = torch.arange(heads, dtype=torch.int32)
    stored = torch.zeros((heads, 1, 1, 256), dtype=torch.uint8).view(kv_dtype)
    scales = torch.zeros((heads, 1, 1))
    write_kv(runtime, PagedKV(stored, stored.clone(), scales, scales.clone()), k, k, slots)
    assert torch.equal(scales, torch.ones_like(scales))
    expected = k.round().to(kv_dtype) if kv_dtype is torch.int8 else k.to(kv_dtype)
    assert torch.equal(stored.float().flatten(), expected.float().flatten())


@pytest.mark.parametrize("kv_dtype", FORMATS, ids=str)
def test_each_head_of_each_slot_has_the_scale_of_its_largest_entry(
    runtime: KernelRuntime, kv_dtype: torch.dtype
) -> None:
    """A head of zeros and one that is nearly zero are stored as zeros; one that is not finite cannot go unnoticed."""
    k = torch.zeros((5, KV_HEADS, 40))
    k[0, 0, 3], k[0, 1, 39] = -6.0, 1e4
    k[1, 1, 7] = 1e-38
    k[2, 0, 5], k[2, 1, 5] = torch.nan, -torch.inf
    kv, slots = cache(kv_dtype, 40), torch.arange(8, 13, dtype=torch.int32)
    write_kv(runtime, kv, k, k.flip(0), slots)
    largest = FORMATS[kv_dtype].largest
    assert kv.key_scales is not None
    assert kv.value_scales is not None
    expected = torch.ones((5, KV_HEADS))
    expected[0] = torch.tensor([6.0 / largest, 1e4 / largest])
    expected[2] = torch.nan
    torch.testing.assert_close(kv.key_scales.flatten(0, 1)[8:13], expected, equal_nan=True)
    torch.testing.assert_close(kv.value_scales.flatten(0, 1)[8:13], expected.flip(0), equal_nan=True)
    assert kv.keys.float().flatten(0, 1)[8, 0, 3] == -largest
    assert not kv.keys.float().flatten(0, 1)[[9, 11, 12]].any()


def test_nan_arrives_as_nan_in_a_cache_of_floats(runtime: KernelRuntime) -> None:
    for kv_dtype in (torch.float32, torch.bfloat16, torch.float16):
        given, kv = tokens(torch.bfloat16, 40, 16, False), cache(kv_dtype, 40)
        rotary_write_kv(runtime, given.q, given.k, given.v, given.positions, given.table, kv, given.slots)
        assert kv.keys[0, 0].isnan().all()
        assert kv.values[0, 0].isnan().all()
        assert not kv.keys[1:].isnan().any()
