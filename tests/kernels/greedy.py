"""Compiles a modest kernel, one that no thread has registers for and one that is wrong; run by `test_ahead_of_time`."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import torch
import triton
import triton.language as tl

from octavo_torch.kernels.ahead_of_time.build import Failure, FigureCache, build
from octavo_torch.kernels.ahead_of_time.specialise import specialised
from octavo_torch.kernels.launch import Launch
from octavo_torch.kernels.targets import TARGETS


@triton.jit
def product(a, b, c, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # noqa: N803
    row, column, depth = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(steps):
        left = tl.load(a + row[:, None] * (steps * DEPTH) + step * DEPTH + depth[None, :])
        right = tl.load(b + (step * DEPTH + depth[:, None]) * COLUMNS + column[None, :])
        total = tl.dot(left, right, total)
    tl.store(c + row[:, None] * COLUMNS + column[None, :], total)


@triton.jit
def unfinished(a):
    tl.store(a, tl.no_such_function(a))


def main() -> None:
    wanted = {}
    half = torch.empty(1 << 20, dtype=torch.float16, device="meta")
    whole = torch.empty(1 << 20, dtype=torch.float32, device="meta")
    for arch in ("sm_80", "sm_90", "gfx1100"):
        for name, columns, warps in (("modest", 32, 4), ("greedy", 128, 1)):
            arguments = {"a": half, "b": half, "c": whole, "steps": 8, "ROWS": 64, "COLUMNS": columns, "DEPTH": 32}
            launch = Launch(product, (1,), arguments, {"num_warps": warps, "num_stages": 2})
            wanted[f"{name} on {arch}"] = specialised(launch, TARGETS[arch])
    launch = Launch(unfinished, (1,), {"a": half}, {"num_warps": 4, "num_stages": 2})
    wanted["unfinished"] = specialised(launch, TARGETS["sm_90"])
    with tempfile.TemporaryDirectory() as folder:
        outcomes = build(wanted, FigureCache(Path(folder)), jobs=2, built=lambda _: None)
    json.dump(
        {
            name: outcome.reason if isinstance(outcome, Failure) else dataclasses.asdict(outcome)
            for name, outcome in outcomes.items()
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
