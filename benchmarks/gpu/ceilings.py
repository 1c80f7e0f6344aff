"""The two rates nothing can be faster than, measured on this card in this run: memory and matrix units."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.part import Bench, Measurement

COPY, MATRIX = "ceiling/copy", "ceiling/matrix"


def measurements() -> Iterator[Measurement]:
    yield Measurement(COPY, _copy)
    yield Measurement(MATRIX, _matrix)


def _copy(bench: Bench) -> dict[str, Any]:
    """A large copy on the device; bytes read and written both count."""
    source = torch.randint(256, (bench.scale.copy_bytes,), dtype=torch.uint8, device=bench.torch_device)
    target = torch.empty_like(source)
    figures: dict[str, Any] = bench.clock.time([lambda: target.copy_(source)]).figures(2.0 * source.numel())
    return figures


def _matrix(bench: Bench) -> dict[str, Any]:
    """A large bfloat16 product through torch, on random numbers: zeros would run faster."""
    size = bench.scale.matrix_size
    a, b = (torch.randn(size, size, device=bench.torch_device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    figures: dict[str, Any] = bench.clock.time([lambda: torch.mm(a, b, out=out)]).figures(flops=2.0 * size**3)
    return {**figures, "size": size}
