"""`python -m octavo_conformance.running.shard REQUEST`: a shard of a model in a process of its own, or a mesh of them.

It opens its part of a device of several shards, runs one compiled step in which the shards speak to each other, and
writes what came out as one line of JSON. What was right is for the caller to say, who has the results of all shards.

What a shard brings to the step is loaded, split along an axis as weights are: so each has its own, be it a process or a
device of a mesh on which one program runs, and the step itself need not know which shard it is.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from octavo.backend import (
    Array,
    ArraySource,
    Bucket,
    ConcatenatedSource,
    DenseWeight,
    Device,
    DeviceConfig,
    DType,
    KVCache,
    KVLayout,
    Step,
    StepInputs,
    TensorSource,
    Weight,
    WeightRole,
)
from octavo.backend.discovery import open_device
from octavo.packing import padded_size
from octavo_conformance.hostile.batch import Chunk, lay_out

SHARDS, INPUTS, OUTPUTS, ROWS = 2, 16, 24, 3

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weights:
    """What is loaded. In a step a shard sees its part of it; where a compiler shards the arrays, and of a single shard,
    the part is all.

    x [ROWS, INPUTS], whole on each; share: the shard's columns of x. contribution, fractions: the shard's ROWS of
    [SHARDS * ROWS, OUTPUTS]. column [OUTPUTS, INPUTS] with a bias, and fused [2 * OUTPUTS, INPUTS] of two parts, are
    split by outputs, row [OUTPUTS, INPUTS] by inputs.
    """

    x: Array
    share: Array
    contribution: Array
    fractions: Array
    column: Weight
    fused: Weight
    row: Weight


@dataclass(frozen=True, slots=True)
class Outputs:
    """What comes out of the step, the same on each shard. The last three have a row for each logit row."""

    sum: Array
    inexact_sum: Array
    rows: Array
    columns: Array
    column_parallel: Array
    fused: Array
    row_parallel: Array


def sources() -> dict[str, TensorSource]:
    """The tensors of `Weights`, which all shards and their caller know, and the bias of `column`.

    All but `fractions` are small integers, so that sums are exact in any order and dtype.
    """
    fused = [ArraySource(name, _integers(name, OUTPUTS, INPUTS), 0) for name in ("gate", "up")]
    noise = np.random.default_rng(1000).standard_normal((SHARDS * ROWS, OUTPUTS))
    return {
        "x": ArraySource("x", _integers("x", ROWS, INPUTS)),
        "share": ArraySource("share", _integers("x", ROWS, INPUTS), 1),
        "contribution": ArraySource("contribution", _integers("contribution", SHARDS * ROWS, OUTPUTS), 0),
        "fractions": ArraySource("fractions", noise.astype(np.float32), 0),
        "column": ArraySource("column", _integers("column", OUTPUTS, INPUTS), 0),
        "bias": ArraySource("bias", _integers("bias", OUTPUTS), 0),
        "fused": ConcatenatedSource("fused", fused),
        "row": ArraySource("row", _integers("row", OUTPUTS, INPUTS), 1),
    }


def main(request: Mapping[str, Any]) -> None:
    """Open the device, run, answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a backend prints is no part of the answer
    sys.path[:] = request["path"]
    device = open_device(DeviceConfig(**request["config"])).device
    kv_heads = SHARDS // device.collectives.size
    layout = KVLayout(
        layers=1,
        kv_heads=kv_heads,
        head_size=request["head_size"],
        block_size=request["block_size"],
        dtype=DType(request["kv_dtype"]),
        windows=(None,),
        query_heads=2 * kv_heads,
    )
    answer = _run(device, DType(request["dtype"]), layout)
    device.close()
    print(json.dumps(answer), file=answers, flush=True)


def _run(device: Device, dtype: DType, layout: KVLayout) -> dict[str, Any]:
    """What this process has to say."""
    weights, inputs = _load(device, dtype), _inputs(device, layout.block_size)
    contribution = device.download(weights.contribution).shape
    blocks = 1 + int(inputs.attention.block_tables.max())
    step = device.compile(_make_step(device), _bucket(device, inputs))
    outputs, _ = step(weights, device.allocate_kv(layout, blocks), device.stage(inputs))

    def host(array: Array) -> list[Any]:
        return device.download(array).astype(np.float32).tolist()  # type: ignore[no-any-return]

    return {
        "rank": device.collectives.rank,
        "size": device.collectives.size,
        "is_mesh": contribution == sources()["contribution"].shape,  # an array of all shards is at hand here
        "sum": host(outputs.sum),
        "inexact_sum": device.download(outputs.inexact_sum).tobytes().hex(),
        "rows": host(outputs.rows),
        "columns": host(outputs.columns),
        "column_parallel": host(outputs.column_parallel)[:ROWS],
        "fused": host(outputs.fused)[:ROWS],
        "row_parallel": host(outputs.row_parallel)[:ROWS],
    }


def _load(device: Device, dtype: DType) -> Weights:
    arrays = {name: device.load(source, dtype) for name, source in sources().items()}

    def linear(name: str, bias: Array | None = None) -> Weight:
        return device.prepare(DenseWeight(arrays[name], bias), WeightRole.LINEAR)

    return Weights(
        x=arrays["x"],
        share=arrays["share"],
        contribution=arrays["contribution"],
        fractions=arrays["fractions"],
        column=linear("column", arrays["bias"]),
        fused=linear("fused"),
        row=linear("row"),
    )


def _make_step(device: Device) -> Step:
    ops, collectives, rank = device.ops, device.collectives, device.collectives.rank
    parts = {name: source.shard(0, collectives.size).shape for name, source in sources().items()}  # alike on all shards

    def step(weights: Weights, kv: KVCache, inputs: StepInputs) -> tuple[Outputs, KVCache]:
        for name in ("contribution", "share"):
            shape = tuple(getattr(weights, name).shape)
            if shape != parts[name]:
                raise ValueError(
                    f"load gave shard {rank} of {collectives.size} a tensor {shape}; its part along axis "
                    f"{sources()[name].shard_axis} is {parts[name]}"
                )
        xp = array_namespace(weights.contribution)
        x, share = (xp.take(array, inputs.token_ids, axis=0) for array in (weights.x, weights.share))
        wide = [ops.linear(x, weight) for weight in (weights.column, weights.fused)]
        layers = (*(collectives.all_gather(y, 1) for y in wide), collectives.all_reduce(ops.linear(share, weights.row)))
        return Outputs(
            collectives.all_reduce(weights.contribution),
            collectives.all_reduce(weights.fractions),
            collectives.all_gather(weights.contribution, 0),
            collectives.all_gather(weights.contribution, 1),
            *(xp.take(y, inputs.logit_rows, axis=0) for y in layers),
        ), kv

    return step


def _inputs(device: Device, block_size: int) -> StepInputs:
    """A prompt of ROWS tokens, padded where the device wants it: token i takes row i of x, and each is a logit row."""

    def missing(size: int) -> int:
        return padded_size(size, device.info.capabilities.static_shapes) - size

    inputs = lay_out(
        np.random.default_rng(0),
        [Chunk(ROWS, ROWS)],
        block_size,
        pad_tokens=missing(ROWS),
        pad_sequences=missing(1),
        pad_blocks=missing(-(-ROWS // block_size)),
    ).inputs
    ids = np.zeros(len(inputs.token_ids), np.int32)
    ids[:ROWS] = np.arange(ROWS, dtype=np.int32)
    return replace(inputs, token_ids=ids, logit_rows=ids.copy())


def _bucket(device: Device, inputs: StepInputs) -> Bucket:
    if not device.info.capabilities.static_shapes:
        return Bucket(0, 0, 0, 0, False)
    sequences, blocks = inputs.attention.block_tables.shape
    return Bucket(len(inputs.token_ids), sequences, blocks, len(inputs.logit_rows), False)


def _integers(name: str, *shape: int) -> Float32Array:
    return np.random.default_rng(zlib.crc32(name.encode())).integers(-2, 3, shape).astype(np.float32)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
