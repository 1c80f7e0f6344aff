"""A plugin frozen as it was written for version 1 keeps running on this core."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.backend import (
    Activation,
    ArraySource,
    AttentionMetadata,
    Bucket,
    ConcatenatedSource,
    DenseWeight,
    Device,
    DeviceConfig,
    DType,
    ExpertWeights,
    KVLayout,
    LoRABank,
    RotaryTable,
    StepInputs,
    WeightRole,
)
from octavo.backend.discovery import discover, open_device

FROZEN = Path(__file__).parents[2] / "fixtures" / "plugin_v1"
HEADS, KV_HEADS, SIZE, HIDDEN, VOCAB, BLOCK = 4, 2, 8, 16, 13, 4


@dataclass(frozen=True)
class Outputs:
    logits: Any  # [rows, vocab]
    best: Any  # int32 [rows, 3]


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.syspath_prepend(FROZEN)
    monkeypatch.delitem(sys.modules, "octavo_plugin_v1", raising=False)
    found = discover().named("plugin-v1")
    assert (found.package, found.version, found.backend.api_version) == ("octavo-plugin-v1", "1.0", 1)
    return open_device(DeviceConfig("plugin-v1", kernel="loops")).device


def load_weights(device: Device) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def linear(out: int, size: int, parts: int = 1) -> Any:
        shares = [
            ArraySource("w", rng.standard_normal((out // parts, size)).astype(np.float32), 0) for _ in range(parts)
        ]
        source = ConcatenatedSource("fused", shares) if parts > 1 else shares[0]
        bias = device.upload(rng.standard_normal(out).astype(np.float32))
        return device.prepare(DenseWeight(device.load(source, DType.FLOAT32), bias), WeightRole.LINEAR)

    def array(*shape: int) -> Any:
        return device.load(ArraySource("a", rng.standard_normal(shape).astype(np.float32)), DType.FLOAT32)

    experts = ExpertWeights(DenseWeight(array(3, 12, HIDDEN)), DenseWeight(array(3, HIDDEN, 6)), Activation.GELU_TANH)
    return {
        "embedding": device.prepare(DenseWeight(array(VOCAB, HIDDEN)), WeightRole.TIED_EMBEDDING),
        "norm": array(HIDDEN),
        "qkv": linear((HEADS + 2 * KV_HEADS) * SIZE, HIDDEN, parts=2),
        "out": linear(HIDDEN, HEADS * SIZE),
        "router": linear(3, HIDDEN),
        "experts": device.prepare(experts, WeightRole.EXPERTS),
        "adapters": LoRABank(array(2, 3, HIDDEN), array(2, HIDDEN, 3)),
        "rotary": RotaryTable(array(32, SIZE)),
    }


def make_step(device: Device) -> Any:
    """One layer that uses each operation of the contract."""
    ops, collectives = device.ops, device.collectives

    def step(weights: dict[str, Any], kv: Any, inputs: StepInputs) -> tuple[Outputs, Any]:
        meta, tokens = inputs.attention, len(inputs.token_ids)
        x = ops.embedding(inputs.token_ids, weights["embedding"])
        x, residual = ops.rms_norm(x, weights["norm"], 1e-5)
        qkv = ops.linear(x, weights["qkv"]).reshape((tokens, HEADS + 2 * KV_HEADS, SIZE))
        q, k, v = qkv[:, :HEADS], qkv[:, HEADS : HEADS + KV_HEADS], qkv[:, HEADS + KV_HEADS :]
        q, layer = ops.rotary_write_kv(q, k, v, meta.positions, weights["rotary"], kv[0], meta.slots)
        x = ops.paged_attention(q, layer, meta, SIZE**-0.5, window=6, softcap=4.0, sinks=weights["norm"][:HEADS])
        x = collectives.all_reduce(ops.linear(x.reshape((tokens, HEADS * SIZE)), weights["out"]))
        x, residual = ops.rms_norm(x, weights["norm"], 1e-5, residual)
        routed = ops.mixture_of_experts(x, ops.linear(x, weights["router"]), weights["experts"], 2)
        x = ops.lora(x, routed, weights["adapters"], inputs.adapter_ids)
        logits = collectives.all_gather(ops.linear(x, weights["embedding"])[inputs.logit_rows], axis=1)
        logits = ops.scatter_add(logits, inputs.sampling["ids"], inputs.sampling["values"])
        return Outputs(logits, ops.top_k(logits, 3)[1]), [layer]

    return step


def make_inputs(sequences: list[tuple[list[int], int, list[int]]]) -> StepInputs:
    """A step of (block table, tokens in the cache, new tokens) triples."""
    table = np.zeros((len(sequences), 3), np.int32)
    ids, positions, slots, owner, starts, lengths = [], [], [], [], [0], []
    for row, (blocks, cached, tokens) in enumerate(sequences):
        table[row, : len(blocks)] = blocks
        for position, token in enumerate(tokens, cached):
            ids.append(token)
            positions.append(position)
            slots.append(blocks[position // BLOCK] * BLOCK + position % BLOCK)
            owner.append(row)
        starts.append(len(ids))
        lengths.append(cached + len(tokens))
    meta = AttentionMetadata(*(np.array(part, np.int32) for part in (positions, slots, owner, starts, lengths)), table)
    rows = np.array(starts[1:], np.int32) - 1
    adapters = np.array([row % 3 - 1 for row in range(len(ids))], np.int32)
    edits = {"ids": np.zeros((len(rows), 2), np.int32), "values": np.ones((len(rows), 2), np.float32)}
    return StepInputs(np.array(ids, np.int32), rows, meta, adapters, edits)


SCRIPT = [
    make_inputs([([5, 2, 7], 0, [1, 2, 3, 4, 5, 6, 7])]),
    make_inputs([([5, 2, 7], 7, [8]), ([1, 4], 0, [9, 10, 11])]),  # a decode beside a prefill
    make_inputs([([5, 2, 7], 8, [9]), ([1, 4], 3, [12, 0])]),
]


def run(device: Device, copy: bool) -> list[np.ndarray]:
    layout = KVLayout(layers=1, kv_heads=KV_HEADS, head_size=SIZE, block_size=BLOCK, dtype=DType.FLOAT32)
    assert device.kv_block_bytes(layout) > 0
    assert 0 < device.memory().free <= device.memory().total
    weights, kv = load_weights(device), device.allocate_kv(layout, 9)
    step = device.compile(make_step(device), Bucket(0, 0, 0, 0, decode_only=False))
    logits = []
    for number, inputs in enumerate(SCRIPT):
        if copy and number == 2:  # copy-on-write of the first sequence's blocks, and step 3 reads the copies
            source, target = np.array([5, 2, 7, 0], np.int32), np.array([6, 3, 8, 0], np.int32)
            kv = device.ops.copy_blocks(kv, device.upload(source), device.upload(target))
            inputs = make_inputs([([6, 3, 8], 8, [9]), ([1, 4], 3, [12, 0])])
        outputs, kv = step(weights, kv, device.stage(inputs))
        logits.append(device.download(outputs.logits))
        np.testing.assert_array_equal(device.download(outputs.best)[:, 0], logits[-1].argmax(axis=1))
    device.close()
    return logits


@pytest.mark.parametrize("copy", [False, True])
def test_the_frozen_plugin_steps_as_the_reference_does(frozen, copy):
    reference = open_device(DeviceConfig("reference")).device
    for mine, theirs in zip(run(frozen, copy), run(reference, copy=False), strict=True):
        assert np.isfinite(theirs).all()
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert frozen.compiled == 1
    assert frozen.closed
