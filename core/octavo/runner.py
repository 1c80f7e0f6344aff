"""From a plan of plain integers to sampled tokens: pack, stage, run the compiled step, download.

The runner owns everything on the device: weights, KV cache, compiled steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import cast

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from octavo.backend import AttentionMetadata, BackendError, Bucket, Device, DType, KVCache, Step, StepInputs
from octavo.backend.tree import flatten, tree_map, unflatten
from octavo.models.config import DecoderConfig
from octavo.models.decoder import DecoderWeights, hidden_states, logits
from octavo.planning import CachePlan
from octavo.sampling.batch import RowSpec, build_inputs
from octavo.sampling.inputs import SamplerFeatures, SamplerOutputs
from octavo.sampling.sampler import sample
from octavo.scheduling import Chunk, Plan

Int32Array = NDArray[np.int32]

MAX_LOGIT_ROWS = 256
"""Rows whose logits exist at a time: prompt_logprobs asks for those of every prompt token, a vocabulary each."""

SMALLEST_BUCKET = 8
"""Least size a static dimension is padded to: below it, padding costs less than one more compilation."""

POISONED_SLOTS = 512
"""Slots of the KV cache that are filled with NaN at a time."""


@dataclass(frozen=True, slots=True)
class LogitRow:
    """A token of the step whose logits are wanted, and how they are sampled.

    token: index into the step's tokens.
    """

    token: int
    spec: RowSpec


class Runner:
    """Runs steps of one model on one device."""

    def __init__(self, device: Device, model: DecoderConfig, weights: DecoderWeights, cache: CachePlan) -> None:
        self._device = device
        self._model = model
        self._weights = weights
        self._layout = cache.layout
        self._kv: KVCache = device.allocate_kv(cache.layout, cache.num_blocks)
        if len(self._kv) != cache.layout.layers:
            raise BackendError(
                f"Backend {device.info.backend!r} allocated a KV cache of {len(self._kv)} layers for a model of "
                f"{cache.layout.layers}: allocate_kv returns a list with one entry for each layer."
            )
        capabilities = device.info.capabilities
        self._static = capabilities.static_shapes
        self._captures = capabilities.graph_capture
        self._steps: dict[Bucket, Step] = {}

    def run(self, plan: Plan, rows: Sequence[LogitRow]) -> SamplerOutputs:
        """Run one step; the outputs are NumPy arrays [rows]. `rows` is in the order the caller wants them back."""
        self.copy(plan.copies)
        decode_only = plan.num_decodes == len(plan.chunks)
        pad = self._static or (self._captures and decode_only)
        # At least one row, also in a step that samples nothing: arrays of size 0 are a trap on every library.
        num_rows = padded_size(max(1, len(rows)), pad)
        sampling, features = build_inputs([row.spec for row in rows], num_rows, self._model.vocab_size)
        token_ids, attention = self._pack(plan.chunks, decode_only, pad)
        inputs = StepInputs(token_ids, _padded([row.token for row in rows], num_rows), attention, sampling=sampling)
        step = self._step(self._bucket(inputs, pad, features), features)
        outputs, self._kv = step(self._weights, self._kv, self._device.stage(inputs))
        return tree_map(lambda array: self._device.download(array)[: len(rows)], cast(SamplerOutputs, outputs))

    def poison(self, blocks: Sequence[int], dtype: DType) -> None:
        """Fill blocks with NaN in every layer; `dtype` is the model's, in which keys and values arrive."""
        layout, ops = self._layout, self._device.ops
        slots = [block * layout.block_size + index for block in blocks for index in range(layout.block_size)]
        for start in range(0, len(slots), POISONED_SLOTS):
            part = slots[start : start + POISONED_SLOTS]
            padded = _padded(part, padded_size(len(part), self._static))
            nothing = np.full((len(padded), layout.kv_heads, layout.head_size), np.nan, dtype.numpy)
            where, k, v = (self._device.upload(array) for array in (padded, nothing, nothing.copy()))
            self._kv = [ops.write_kv(layer, k, v, where) for layer in self._kv]

    def close(self) -> None:
        """Give back the KV cache, the weights and the device; the runner cannot be used any more."""
        self._steps.clear()
        self._kv = []
        del self._weights
        self._device.close()

    def alive(self) -> bool:
        """Whether the device still answers: a round trip of one number."""
        sent = np.ones(1, np.int32)
        try:
            return bool((self._device.download(self._device.upload(sent)) == sent).all())
        except Exception:  # whatever it is, it is no answer
            return False

    # ---------------------------------------------------------------------------------------------------- details

    def _bucket(self, inputs: StepInputs, pad: bool, features: SamplerFeatures) -> Bucket:
        meta = inputs.attention
        if not pad:
            return Bucket(0, 0, 0, 0, meta.decode_only, features)
        sequences, blocks = meta.block_tables.shape
        return Bucket(len(inputs.token_ids), sequences, blocks, len(inputs.logit_rows), meta.decode_only, features)

    def _step(self, bucket: Bucket, features: SamplerFeatures) -> Step:
        if bucket not in self._steps:
            self._steps[bucket] = self._device.compile(self._make_step(features), bucket)
        return self._steps[bucket]

    def _make_step(self, features: SamplerFeatures) -> Step:
        ops, collectives, model = self._device.ops, self._device.collectives, self._model

        def step(weights: DecoderWeights, kv: KVCache, inputs: StepInputs) -> tuple[SamplerOutputs, KVCache]:
            hidden, kv = hidden_states(model, ops, collectives, weights, kv, inputs)
            parts = []
            for start in range(0, hidden.shape[0], MAX_LOGIT_ROWS):
                rows = itemgetter((slice(start, min(start + MAX_LOGIT_ROWS, hidden.shape[0])), ...))
                sampling = tree_map(rows, inputs.sampling)
                parts.append(sample(ops, logits(ops, collectives, weights, rows(hidden)), sampling, features))
            return _concatenated(parts), kv

        return step

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, (source, target) each, all sources read before any target is written."""
        if not copies:
            return
        # Padding copies the null block onto itself.
        pairs = np.zeros((2, padded_size(len(copies), self._static)), np.int32)
        pairs[:, : len(copies)] = np.asarray(copies, np.int32).T
        source, target = (self._device.upload(np.ascontiguousarray(side)) for side in pairs)
        self._kv = self._device.ops.copy_blocks(self._kv, source, target)

    def _pack(self, chunks: Sequence[Chunk], decode_only: bool, pad: bool) -> tuple[Int32Array, AttentionMetadata]:
        """Token ids [tokens], and where they stand."""
        block_size = self._layout.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sequences: list[int] = []
        starts = [0]
        for index, chunk in enumerate(chunks):
            blocks = chunk.sequence.block_table.blocks
            span = range(chunk.start, chunk.start + chunk.count)
            token_ids.extend(chunk.sequence.token_ids[span.start : span.stop])
            positions.extend(span)
            slots.extend([blocks[position // block_size] * block_size + position % block_size for position in span])
            sequences.extend([index] * chunk.count)
            starts.append(starts[-1] + chunk.count)
        lengths = [chunk.start + chunk.count for chunk in chunks]
        # Blocks allocated ahead are left out of the tables: the step looks at those up to its context only.
        widths = [-(-length // block_size) for length in lengths]
        rows, tokens = padded_size(len(chunks), pad), padded_size(len(token_ids), pad)
        tables = np.zeros((rows, padded_size(max(widths), pad)), np.int32)
        for index, (chunk, width) in enumerate(zip(chunks, widths, strict=True)):
            tables[index, :width] = chunk.sequence.block_table.blocks[:width]
        attention = AttentionMetadata(
            positions=_padded(positions, tokens),
            slots=_padded(slots, tokens),
            sequences=_padded(sequences, tokens),
            query_starts=_padded(starts, rows + 1, fill=starts[-1]),
            context_lengths=_padded(lengths, rows),
            block_tables=tables,
            decode_only=decode_only,
        )
        return _padded(token_ids, tokens), attention


def _concatenated(parts: Sequence[SamplerOutputs]) -> SamplerOutputs:
    """The outputs of consecutive slices of rows as one."""
    if len(parts) == 1:
        return parts[0]
    leaves, structures = zip(*(flatten(part) for part in parts), strict=True)
    xp = array_namespace(leaves[0][0])
    whole = unflatten(structures[0], [xp.concat(arrays, axis=0) for arrays in zip(*leaves, strict=True)])
    return cast(SamplerOutputs, whole)


def padded_size(size: int, pad: bool) -> int:
    """The size itself, or padded to the next bucket: a power of two."""
    return max(SMALLEST_BUCKET, 1 << (size - 1).bit_length()) if pad else size


def _padded(values: Sequence[int], size: int, fill: int = 0) -> Int32Array:
    array = np.full(size, fill, np.int32)
    array[: len(values)] = values
    return array
