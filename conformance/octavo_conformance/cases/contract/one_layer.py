"""A step of one attention layer, in operations alone: what `stage` and `compile` are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from array_api_compat import array_namespace

from octavo.backend import (
    Array,
    ArraySource,
    AttentionMetadata,
    Bucket,
    DenseWeight,
    Device,
    KVCache,
    KVLayout,
    Ops,
    Step,
    StepInputs,
    Weight,
    WeightRole,
)
from octavo.packing import padded_size
from octavo_conformance.hostile.batch import Chunk, lay_out
from octavo_conformance.workbench import Workbench

VOCABULARY, HIDDEN, HEADS, KV_HEADS = 64, 32, 4, 2


@dataclass(frozen=True, slots=True)
class Weights:
    """embedding [vocabulary, hidden]; qkv [(heads + 2 * kv_heads) * head_size, hidden]; out [hidden, heads *
    head_size].
    """

    embedding: Weight
    qkv: Weight
    out: Weight


@dataclass(frozen=True, slots=True)
class Outputs:
    """hidden [rows, hidden] of the rows that sample; best int32 [rows, 4], their largest entries."""

    hidden: Array
    best: Array


@dataclass(frozen=True, slots=True)
class OneLayer:
    """The layer on one device. static, captures: whether steps, or those of decodes alone, are padded to buckets."""

    device: Device
    layout: KVLayout
    weights: Weights
    static: bool
    captures: bool

    @classmethod
    def build(cls, bench: Workbench) -> OneLayer:
        """Random weights in the most precise dtype that the device claims."""
        device, size = bench.device, bench.head_size

        def weight(rows: int, columns: int, role: WeightRole) -> Weight:
            host = (bench.rng.standard_normal((rows, columns)) / columns**0.5).astype(bench.dtype.numpy)
            return device.prepare(DenseWeight(device.load(ArraySource("weight", host), bench.dtype)), role)

        weights = Weights(
            embedding=weight(VOCABULARY, HIDDEN, WeightRole.EMBEDDING),
            qkv=weight((HEADS + 2 * KV_HEADS) * size, HIDDEN, WeightRole.LINEAR),
            out=weight(HIDDEN, HEADS * size, WeightRole.LINEAR),
        )
        layout = KVLayout(1, KV_HEADS, size, bench.block_size, bench.kv_dtype, (None,), HEADS)
        claimed = bench.capabilities
        return cls(device, layout, weights, claimed.static_shapes, claimed.graph_capture)

    def step(self, scale: float) -> Step:
        """The layer as a step. scale: of its attention: another scale is another step."""
        ops: Ops = self.device.ops
        size = self.layout.head_size

        def step(weights: Weights, kv: KVCache, inputs: StepInputs) -> tuple[Outputs, KVCache]:
            meta: AttentionMetadata = inputs.attention
            x = ops.embedding(inputs.token_ids, weights.embedding)  # [tokens, hidden]
            qkv = ops.linear(x, weights.qkv)
            xp = array_namespace(qkv)
            qkv = xp.reshape(qkv, (x.shape[0], HEADS + 2 * KV_HEADS, size))
            q, k, v = qkv[:, :HEADS, :], qkv[:, HEADS:-KV_HEADS, :], qkv[:, -KV_HEADS:, :]
            cache = ops.write_kv(kv[0], k, v, meta.slots)
            attended = ops.paged_attention(q, cache, meta, scale)
            hidden = ops.linear(xp.reshape(attended, (x.shape[0], HEADS * size)), weights.out)
            rows = xp.take(hidden, inputs.logit_rows, axis=0)
            return Outputs(rows, ops.top_k(rows, 4)[1]), [cache]

        return step

    def inputs(self, rng: np.random.Generator, chunks: Sequence[Chunk]) -> StepInputs:
        """A step's inputs as the runner packs them, padded where this device wants it; each token samples."""
        tokens, decode_only = sum(chunk.queries for chunk in chunks), all(chunk.queries == 1 for chunk in chunks)
        widest = max(-(-chunk.context // self.layout.block_size) for chunk in chunks)
        pad = self.static or (self.captures and decode_only)
        batch = lay_out(
            rng,
            chunks,
            self.layout.block_size,
            pad_tokens=_missing(tokens) if pad else 0,
            pad_sequences=_missing(len(chunks)) if pad else 0,
            pad_blocks=_missing(widest) if pad else 0,
        )
        count = len(batch.inputs.token_ids)
        rows = np.zeros(count, np.int32)
        rows[:tokens] = np.arange(tokens, dtype=np.int32)
        ids = rng.integers(0, VOCABULARY, count).astype(np.int32)
        return replace(batch.inputs, token_ids=ids, logit_rows=rows)

    def bucket(self, inputs: StepInputs, variant: float) -> Bucket:
        """The static shape of these inputs, as the runner names it."""
        meta = inputs.attention
        if not (self.static or (self.captures and meta.decode_only)):
            return Bucket(0, 0, 0, 0, meta.decode_only, variant)
        sequences, blocks = meta.block_tables.shape
        return Bucket(len(inputs.token_ids), sequences, blocks, len(inputs.logit_rows), meta.decode_only, variant)

    def filled(self, values: np.ndarray) -> KVCache:
        """A cache that holds these keys and values in its slots.

        values [2, blocks * block_size, kv_heads, head_size], in a compute dtype of the device.
        """
        kv = list(self.device.allocate_kv(self.layout, values.shape[1] // self.layout.block_size))
        slots = self.device.upload(np.arange(values.shape[1], dtype=np.int32))
        k, v = (self.device.upload(side.copy()) for side in values)
        kv[0] = self.device.ops.write_kv(kv[0], k, v, slots)
        return kv


def _missing(size: int) -> int:
    return padded_size(size, pad=True) - size
