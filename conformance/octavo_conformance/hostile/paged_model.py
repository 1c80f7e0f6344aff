"""A whole model over a hostile cache, fed step by step as the engine does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from octavo.backend import Array, Bucket, DType, KVCache, KVLayout, Step, StepInputs
from octavo.config import EngineConfig
from octavo.models.checkpoint import open_checkpoint
from octavo.models.decoder import DecoderWeights, hidden_states, logits
from octavo.models.resolve import resolve_model
from octavo.models.weights import load_weights
from octavo.packing import padded_size
from octavo.planning import choose_kv_dtype
from octavo_conformance.hostile.batch import Chunk, assemble
from octavo_conformance.hostile.cache import HostileCache
from octavo_conformance.oracles.models import TinyModel
from octavo_conformance.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Logits:
    """What a step returns: float32 [rows, vocab], a row for each of its tokens."""

    values: Array


@dataclass(frozen=True, slots=True)
class Submitted:
    """A step on its way, whose logits are still on the device. rows: which of them are each sequence's."""

    outputs: Logits
    rows: Mapping[str, slice]


class PagedModel:
    """A tiny model on the device under test, and the sequences in its cache.

    Blocks are dealt from a shuffled pool. Those of a sequence that is freed become garbage and are the next to be
    dealt, so that a step that still looks at them finds another sequence's tokens or NaN.

    blocks: of the pool, the null block included. padded: every step has the sizes of a bucket; a device with static
    shapes gets that anyway.
    """

    def __init__(self, bench: Workbench, model: TinyModel, blocks: int, padded: bool = False) -> None:
        device, dtype = bench.device, model.spec.dtype
        checkpoint = open_checkpoint(resolve_model(str(model.directory)))
        self.config = model.config
        layout = kv_layout(bench, model, bench.block_size)
        self._device = device
        self._weights = load_weights(self.config, checkpoint, device, dtype)
        self._cache = HostileCache(device, layout, blocks, bench.rng, dtype)
        self._padded = padded or bench.capabilities.static_shapes
        self._rng = bench.rng
        self._free: list[int] = (1 + bench.rng.permutation(blocks - 1)).tolist()
        self._tables: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}
        self._steps: dict[Bucket, Step] = {}

    def submit(self, tokens: Mapping[str, Sequence[int]]) -> Submitted:
        """Run a step over the next tokens of several sequences, a sequence of one token before the others."""
        names = sorted(tokens, key=lambda name: len(tokens[name]) > 1)
        chunks = [self._extend(name, len(tokens[name])) for name in names]
        inputs = self._inputs(chunks, [self._tables[name] for name in names], [tokens[name] for name in names])
        step = self._compiled(inputs)
        outputs, layers = step(self._weights, self._cache.layers, self._device.stage(inputs))
        self._cache.layers = list(layers)
        starts = inputs.attention.query_starts.tolist()
        rows = {name: slice(starts[row], starts[row + 1]) for row, name in enumerate(names)}
        return Submitted(outputs, rows)

    def logits(self, submitted: Submitted) -> dict[str, NDArray[np.float32]]:
        """Each sequence's logits of a step, [tokens, vocab]. Other steps may have run since."""
        values = self._device.download(submitted.outputs.values)
        return {name: values[rows] for name, rows in submitted.rows.items()}

    def free(self, name: str) -> None:
        """End a sequence."""
        blocks = self._tables.pop(name)
        del self._lengths[name]
        self._cache.poison(blocks)
        self._free.extend(blocks)

    # ---------------------------------------------------------------------------------------------------- details

    def _extend(self, name: str, queries: int) -> Chunk:
        table = self._tables.setdefault(name, [])
        context = self._lengths.get(name, 0) + queries
        while len(table) * self._cache.layout.block_size < context:
            table.append(self._free.pop())
        self._lengths[name] = context
        return Chunk(context, queries)

    def _inputs(
        self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
    ) -> StepInputs:
        count, width = sum(map(len, tokens)), max(map(len, tables))
        batch = assemble(
            chunks,
            tables,
            self._cache.layout.block_size,
            num_blocks=self._cache.blocks,
            pad_tokens=self._size(count) - count,
            pad_sequences=self._size(len(chunks)) - len(chunks),
            pad_blocks=self._size(width) - width,
        )
        # Padding tokens are tokens too, any of them, and what comes of them is nobody's.
        token_ids = self._rng.integers(0, self.config.vocab_size, self._size(count)).astype(np.int32)
        token_ids[:count] = np.concatenate([np.asarray(part, np.int32) for part in tokens])
        rows = np.zeros(self._size(count), np.int32)
        rows[:count] = np.arange(count)
        return replace(batch.inputs, token_ids=token_ids, logit_rows=rows)

    def _size(self, size: int) -> int:
        return padded_size(size, self._padded)

    def _compiled(self, inputs: StepInputs) -> Step:
        meta = inputs.attention
        bucket = Bucket(0, 0, 0, 0, meta.decode_only)
        if self._padded:
            sequences, blocks = meta.block_tables.shape
            bucket = Bucket(len(inputs.token_ids), sequences, blocks, len(inputs.logit_rows), meta.decode_only)
        if bucket not in self._steps:
            self._steps[bucket] = self._device.compile(self._step, bucket)
        return self._steps[bucket]

    def _step(self, weights: DecoderWeights, kv: KVCache, inputs: StepInputs) -> tuple[Logits, KVCache]:
        ops, collectives = self._device.ops, self._device.collectives
        hidden, kv = hidden_states(self.config, ops, collectives, weights, kv, inputs)
        return Logits(logits(ops, collectives, weights, hidden)), kv


def kv_layout(bench: Workbench, model: TinyModel, block_size: int) -> KVLayout:
    """The cache that the engine gives a model on this device."""
    config = model.config
    return KVLayout(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        block_size=block_size,
        dtype=choose_kv_dtype(EngineConfig(), bench.device.info, model.spec.dtype),
        windows=config.windows,
        query_heads=config.heads,
    )


def cache_tolerance(bench: Workbench, model: TinyModel) -> float:
    """What a KV cache of another dtype than the model's adds to the error of its logits."""
    dtype = choose_kv_dtype(EngineConfig(), bench.device.info, model.spec.dtype)
    if dtype in (model.spec.dtype, DType.FLOAT32):
        return 0.0
    # Its rounding is felt where the model's own would be; of the narrower ones only their own row knows.
    row = "model" if dtype in (DType.FLOAT16, DType.BFLOAT16) else "kv_cache"
    return bench.tolerances.of(row, dtype)
