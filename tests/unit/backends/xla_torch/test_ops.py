"""What `xla:torch` does otherwise than the shared torch operations, held against them on torch's own tensors.

torch-xla has an environment of its own (`make torch-xla-check`); these operations are torch's on any device.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from octavo_torch import TorchOps

sys.path.insert(0, str(Path(__file__).parents[4] / "backends" / "xla" / "torch-xla"))  # not installed here

from octavo_torch_xla.ops import StaticOps

BLOCKS, BLOCK, KV_HEADS, SIZE = 6, 4, 3, 8


@pytest.fixture
def flushed() -> list[str]:
    return []


@pytest.fixture
def ops(flushed: list[str]) -> StaticOps:
    return StaticOps(lambda: flushed.append("pending operations"))


def _cache(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn((2, BLOCKS, BLOCK, KV_HEADS, SIZE), generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_land_in_their_slots(ops: StaticOps, dtype: torch.dtype) -> None:
    found, expected = _cache(dtype), _cache(dtype)
    k, v = torch.randn(2, 7, KV_HEADS, SIZE)
    slots = torch.tensor([5, 23, 9, 4, 17, 0, 0], dtype=torch.int32)
    ops.write_kv(found, k, v, slots)
    TorchOps().write_kv(expected, k, v, slots)
    assert torch.equal(found[:, 1:], expected[:, 1:])
    assert torch.equal(found[:, 0, 1:], expected[:, 0, 1:])  # slot 0 is padding's, written twice


def test_blocks_are_copied_in_every_layer_and_not_left_to_the_next_step(ops: StaticOps, flushed: list[str]) -> None:
    found = [_cache(torch.float32) + layer for layer in range(2)]
    expected = [layer.clone() for layer in found]
    source, target = torch.tensor([1, 4], dtype=torch.int32), torch.tensor([5, 2], dtype=torch.int32)
    ops.copy_blocks(found, source, target)
    TorchOps().copy_blocks(expected, source, target)
    assert all(map(torch.equal, found, expected))
    assert flushed == ["pending operations"]


def test_equal_entries_are_taken_from_the_front_and_zeros_are_equal(ops: StaticOps) -> None:
    x = torch.tensor([[0.0, -0.0, 3.0, -0.0, 0.0, 3.0]])
    values, ids = ops.top_k(x, 4)
    assert ids.tolist() == [[2, 5, 0, 1]]
    assert values.tolist() == [[3.0, 3.0, 0.0, 0.0]]
