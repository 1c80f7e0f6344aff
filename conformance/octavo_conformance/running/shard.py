"""One shard of a model in a process of its own: `python -m octavo_conformance.running.shard REQUEST`.

It opens its part of a device of several shards, runs their collectives and a column- and a row-parallel layer, and
writes what came out as one line of JSON. What was right is for the caller to say, who has the results of all shards.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.backend import ArraySource, DenseWeight, Device, DeviceConfig, DType, WeightRole
from octavo.backend.discovery import open_device

INPUTS, OUTPUTS, ROWS = 16, 24, 3

Float32Array = NDArray[np.float32]


def values(name: str, *shape: int) -> Float32Array:
    """Numbers that all shards and their caller know: small integers, so that sums are exact in any order and dtype."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(-2, 3, shape).astype(np.float32)


def contribution(rank: int) -> Float32Array:
    """What shard `rank` brings to the collectives: [ROWS, OUTPUTS], another one on each."""
    return values(f"shard {rank}", ROWS, OUTPUTS)


def fractions(rank: int) -> Float32Array:
    """As `contribution`, of numbers whose sum depends on its order."""
    noise = np.random.default_rng(1000 + rank).standard_normal((ROWS, OUTPUTS))
    return noise.astype(np.float32)


def main(request: Mapping[str, Any]) -> None:
    """Open the device, run, answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a backend prints is no part of the answer
    sys.path[:] = request["path"]
    device = open_device(DeviceConfig(**request["config"])).device
    answer = _run(device, DType(request["dtype"]))
    device.close()
    print(json.dumps(answer), file=answers, flush=True)


def _run(device: Device, dtype: DType) -> dict[str, Any]:
    collectives, ops = device.collectives, device.ops
    rank, size = collectives.rank, collectives.size

    def host(array: Any) -> list[Any]:
        return device.download(array).astype(np.float32).tolist()  # type: ignore[no-any-return]

    def up(array: Float32Array) -> Any:
        return device.upload(array.astype(dtype.numpy))

    def weight(name: str, rows: int, columns: int, axis: int) -> Any:
        source = ArraySource(name, values(name, rows, columns), shard_axis=axis)
        array = device.load(source, dtype)
        shape, mine = device.download(array).shape, source.shard(rank, size).shape
        if shape != mine:
            raise ValueError(f"load gave shard {rank} of {size} a tensor {shape}; its part along axis {axis} is {mine}")
        return device.prepare(DenseWeight(array), WeightRole.LINEAR)

    mine = contribution(rank)
    x = values("x", ROWS, INPUTS)
    wide = ops.linear(up(x), weight("column", OUTPUTS, INPUTS, 0))  # [ROWS, OUTPUTS / size]
    share = x.reshape(ROWS, size, INPUTS // size)[:, rank]
    partial = ops.linear(up(np.ascontiguousarray(share)), weight("row", OUTPUTS, INPUTS, 1))  # [ROWS, OUTPUTS]
    return {
        "rank": rank,
        "size": size,
        "sum": host(collectives.all_reduce(up(mine))),
        "inexact_sum": device.download(collectives.all_reduce(up(fractions(rank)))).tobytes().hex(),
        "rows": host(collectives.all_gather(up(mine), 0)),
        "columns": host(collectives.all_gather(up(mine), 1)),
        "column_parallel": host(collectives.all_gather(wide, 1)),
        "row_parallel": host(collectives.all_reduce(partial)),
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
