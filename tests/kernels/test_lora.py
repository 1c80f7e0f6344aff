"""Adapters, beyond conformance: both ways to find a tile's rows, and rows that are to stay as they are."""

from __future__ import annotations

import pytest
import torch

from octavo.backend import LoRABank, array_ops
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.lora import lora
from octavo_torch.kernels.tuning import Row, TuningTable


def grouped_from(runtime: KernelRuntime, rows: int) -> KernelRuntime:
    table = TuningTable({"lora": (Row((), {}, {}, {"grouped_from": rows, "block_rows": 32, "block_in": 16}),)})
    return KernelRuntime(runtime.target, table)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bank(adapters: int, rank: int, inputs: int, out: int) -> LoRABank:
    return LoRABank(numbers(adapters, rank, inputs, seed=1), numbers(adapters, out, rank, seed=2))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("adapters", [1, 3, 40])
def test_each_row_has_its_own_adapter(runtime: KernelRuntime, adapters: int, grouped: bool) -> None:
    rows, weights = 150 if grouped else 12, bank(adapters, 5, 35, 40)
    x, y = numbers(rows, 35), numbers(rows, 40, seed=3)
    ids = torch.randint(-1, adapters, (rows,), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    result = lora(grouped_from(runtime, 0 if grouped else rows + 1), x, y, weights, ids)
    torch.testing.assert_close(result, array_ops.lora(x, y, weights, ids), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("grouped", [True, False])
def test_rows_without_an_adapter_keep_every_bit(runtime: KernelRuntime, grouped: bool) -> None:
    bits = torch.arange(0, 1 << 16, 257, dtype=torch.int32).to(torch.int16)  # -0.0, infinities and NaN of all kinds
    y = bits.view(torch.bfloat16).repeat(20, 1)
    x = torch.full((20, 32), torch.nan, dtype=torch.bfloat16)
    weights = LoRABank(*(each.bfloat16() for each in (numbers(2, 4, 32), numbers(2, len(bits), 4))))
    ids = torch.full((20,), -1, dtype=torch.int32)
    result = lora(grouped_from(runtime, 0 if grouped else 21), x, y, weights, ids)
    assert torch.equal(result.view(torch.int16), y.view(torch.int16))


def test_slices_are_read_where_they_lie(runtime: KernelRuntime) -> None:
    wide_x, wide_y = torch.full((6, 90), torch.nan), torch.full((6, 80), torch.nan)
    wide_x[:, 10:80], wide_y[:, 20:60] = numbers(6, 70), numbers(6, 40, seed=3)
    x, y, weights = wide_x[:, 10:80], wide_y[:, 20:60], bank(2, 8, 70, 40)
    ids = torch.tensor([0, 1, -1, 1, 0, 0], dtype=torch.int32)
    expected = lora(runtime, x.contiguous(), y.contiguous(), weights, ids)
    assert torch.equal(lora(runtime, x, y, weights, ids), expected)
