"""From a plan of plain integers to sampled tokens: pack, stage, launch the compiled step; later, download.

The runner owns everything on the device: weights, KV cache, compiled steps, the board of last tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from operator import itemgetter
from typing import cast

import numpy as np
from array_api_compat import array_namespace

from octavo.backend import Array, BackendError, Bucket, Device, DType, KVCache, Step, StepInputs
from octavo.backend.step import Feedback
from octavo.backend.tree import flatten, tree_map, unflatten
from octavo.models.config import DecoderConfig
from octavo.models.decoder import DecoderWeights, hidden_states, logits
from octavo.packing import SMALLEST_BUCKET, Int32Array, PackedPlan, Packer, StepShape, padded, padded_size
from octavo.planning import CachePlan
from octavo.sampling.batch import RowSpec, SequenceSampling, build_inputs
from octavo.sampling.inputs import SamplerFeatures, SamplerOutputs
from octavo.sampling.params import SamplingParams
from octavo.sampling.sampler import sample
from octavo.scheduling import Plan

MAX_LOGIT_ROWS = 256
"""Rows whose logits exist at a time: prompt_logprobs asks for those of every prompt token, a vocabulary each."""

POISONED_SLOTS = 512
"""Slots of the KV cache that are filled with NaN at a time."""


@dataclass(slots=True)
class LogitRow:
    """A token of the step whose logits are wanted, and how they are sampled. Read at launch; then it may change.

    token: index into the step's tokens. lane: of the sequence that goes on with the sampled token; -1 for nobody.
    """

    token: int
    spec: RowSpec
    lane: int = -1


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What a step returns. last_tokens: the board as the next step reads it, where there is one (see `Feedback`)."""

    sampled: SamplerOutputs
    last_tokens: Array | None = None


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that is on the device, or was; `Runner.collect` waits for it. num_rows: those that are no padding."""

    sampled: SamplerOutputs
    num_rows: int


class Runner:
    """Runs steps of one model on one device. lanes: sequences that run at once, each in a lane of its own.

    On an asynchronous device a step may be launched while the one before runs, and two are the most.
    """

    def __init__(
        self, device: Device, model: DecoderConfig, weights: DecoderWeights, cache: CachePlan, lanes: int
    ) -> None:
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
        self._made: dict[SamplerFeatures, Step] = {}  # one function for all sizes: a backend may share what it compiles
        self.asynchronous = capabilities.asynchronous
        self.pads_decodes = self._static or self._captures
        self.pads_prefills = self._static
        self.wants_warm_up = self._captures or self.asynchronous  # an accelerator; on the host it would only cost time
        self._lanes = lanes
        self._last_tokens: Array | None = None  # the board; None before the first step that needs one
        self._packer = Packer(lanes, cache.layout.block_size, cache.max_model_len, self.asynchronous)

    def launch(self, plan: Plan, rows: Sequence[LogitRow]) -> LaunchedStep:
        """Start one step. `rows` is in the order in which the caller wants the outputs."""
        self.copy(plan.copies)
        pad = self._pads(plan.num_decodes == len(plan.chunks))
        return self._launch(self._packer.pack(plan, pad), rows, pad)

    def rehearse(self, shape: StepShape, params: SamplingParams) -> None:
        """Run a step of that shape for nobody, and wait for it: what it needs is compiled, recorded and loaded then.

        It writes to the null block only, and changes nothing that a later step could see. params: how all of its rows
        are sampled. Raises what a step raises.
        """
        pad = self._pads(shape.decode_only)
        packed = self._packer.rehearsal(shape, pad)
        spec = RowSpec(SequenceSampling(params, (), seed=0, vocab_size=self._model.vocab_size), (), position=0)
        lasts = [(index + 1) * shape.tokens - 1 for index in range(shape.sequences)]
        rows = [LogitRow(last, spec) for last in islice(cycle(lasts), shape.rows or shape.sequences)]
        # A device may run the first step of a bucket as it is, which compiles its kernels, and record the second.
        for _ in range(2 if self._captures and shape.decode_only else 1):
            self.collect(self._launch(packed, rows, pad))

    def collect(self, step: LaunchedStep) -> SamplerOutputs:
        """Wait for a step; its outputs are NumPy arrays [rows]. Raises whatever went wrong in it."""
        try:
            return tree_map(lambda array: self._device.download(array)[: step.num_rows], step.sampled)
        except Exception:
            self._last_tokens = None  # what follows from a failed step is not to be read
            raise

    def poison(self, blocks: Sequence[int], dtype: DType) -> None:
        """Fill blocks with NaN in every layer; `dtype` is the model's, in which keys and values arrive."""
        layout, ops = self._layout, self._device.ops
        slots = [block * layout.block_size + index for block in blocks for index in range(layout.block_size)]
        for start in range(0, len(slots), POISONED_SLOTS):
            part = slots[start : start + POISONED_SLOTS]
            targets = padded(part, padded_size(len(part), self._static))
            nothing = np.full((len(targets), layout.kv_heads, layout.head_size), np.nan, dtype.numpy)
            where, k, v = (self._device.upload(array) for array in (targets, nothing, nothing.copy()))
            self._kv = [ops.write_kv(layer, k, v, where) for layer in self._kv]

    @property
    def compiling(self) -> bool:
        """Whether the device compiles now: for another thread, which is not to take that for a device that hangs."""
        return self._device.compiling

    def close(self) -> None:
        """Give back the KV cache, the weights and the device; the runner cannot be used any more."""
        self._steps.clear()
        self._made.clear()
        self._kv = []
        self._last_tokens = None
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

    def _pads(self, decode_only: bool) -> bool:
        return self._static or (self._captures and decode_only)

    def _launch(self, packed: PackedPlan, rows: Sequence[LogitRow], pad: bool) -> LaunchedStep:
        # At least one row, also in a step that samples nothing: arrays of size 0 are a trap on every library.
        num_rows = self._num_rows(max(1, len(rows)), packed, pad)
        # Rows of prompt_logprobs draw nothing: what others would have them do in vain is a vocabulary for each.
        few = self._static and num_rows <= padded_size(self._lanes, pad)
        sampling, features = build_inputs([row.spec for row in rows], num_rows, self._model.vocab_size, few)
        inputs = StepInputs(
            packed.token_ids,
            padded([row.token for row in rows], num_rows),
            packed.attention,
            sampling=sampling,
            feedback=self._feedback(packed.lane_of_token, rows),
        )
        step = self._step(self._bucket(inputs, pad, features), features)
        outputs, self._kv = step(self._weights, self._kv, self._device.stage(inputs))
        self._last_tokens = outputs.last_tokens
        return LaunchedStep(outputs.sampled, len(rows))

    def _num_rows(self, wanted: int, packed: PackedPlan, pad: bool) -> int:
        """Rows of logits of a step. Each size is one more step to compile, so a padded step has one of few: of decodes,
        a row for each token; of others, few rows, one for each lane, or one for each token (prompt_logprobs). A short
        prompt with many completions (n) may have more rows than tokens.
        """
        if not pad:
            return wanted
        tokens, lanes = len(packed.token_ids), padded_size(self._lanes, pad)
        few = tokens if packed.attention.decode_only else SMALLEST_BUCKET
        sizes = (few, min(lanes, tokens), tokens, lanes, padded_size(wanted, pad))
        return next(size for size in sizes if size >= wanted)

    def _feedback(self, lane_of_token: Int32Array | None, rows: Sequence[LogitRow]) -> Feedback | None:
        if lane_of_token is None:
            return None
        if self._last_tokens is None:
            self._last_tokens = self._device.upload(np.zeros(self._lanes, np.int32))
        lanes = np.array([row.lane for row in rows], np.int32)
        taken = np.flatnonzero(lanes >= 0)
        row_of_lane = np.full(self._lanes, -1, np.int32)
        row_of_lane[lanes[taken]] = taken
        return Feedback(self._last_tokens, lane_of_token, row_of_lane)

    def _bucket(self, inputs: StepInputs, pad: bool, features: SamplerFeatures) -> Bucket:
        meta = inputs.attention
        if not pad:
            return Bucket(0, 0, 0, 0, meta.decode_only, features)
        sequences, blocks = meta.block_tables.shape
        return Bucket(len(inputs.token_ids), sequences, blocks, len(inputs.logit_rows), meta.decode_only, features)

    def _step(self, bucket: Bucket, features: SamplerFeatures) -> Step:
        if bucket not in self._steps:
            if features not in self._made:
                self._made[features] = self._make_step(features)
            self._steps[bucket] = self._device.compile(self._made[features], bucket)
        return self._steps[bucket]

    def _make_step(self, features: SamplerFeatures) -> Step:
        ops, collectives, model = self._device.ops, self._device.collectives, self._model

        def step(weights: DecoderWeights, kv: KVCache, inputs: StepInputs) -> tuple[StepOutputs, KVCache]:
            if inputs.feedback is not None:
                inputs = replace(inputs, token_ids=_fed_back(inputs.token_ids, inputs.feedback))
            hidden, kv = hidden_states(model, ops, collectives, weights, kv, inputs)
            parts = []
            for start in range(0, hidden.shape[0], MAX_LOGIT_ROWS):
                rows = itemgetter((slice(start, min(start + MAX_LOGIT_ROWS, hidden.shape[0])), ...))
                sampling = tree_map(rows, inputs.sampling)
                parts.append(sample(ops, logits(ops, collectives, weights, rows(hidden)), sampling, features))
            sampled = _concatenated(parts)
            return StepOutputs(sampled, _next_board(sampled.token_ids, inputs.feedback)), kv

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


def _fed_back(token_ids: Array, feedback: Feedback) -> Array:
    """The step's token ids, those taken from the board that the host does not know."""
    xp, lanes = array_namespace(token_ids), feedback.lane_of_token
    return xp.where(lanes < 0, token_ids, xp.take(feedback.last_tokens, xp.where(lanes < 0, 0, lanes), axis=0))


def _next_board(sampled: Array, feedback: Feedback | None) -> Array | None:
    """The board with what this step sampled; None where there is no board."""
    if feedback is None:
        return None
    xp, rows = array_namespace(sampled), feedback.row_of_lane
    return xp.where(rows < 0, feedback.last_tokens, xp.take(sampled, xp.where(rows < 0, 0, rows), axis=0))


def _concatenated(parts: Sequence[SamplerOutputs]) -> SamplerOutputs:
    """The outputs of consecutive slices of rows as one."""
    if len(parts) == 1:
        return parts[0]
    leaves, structures = zip(*(flatten(part) for part in parts), strict=True)
    xp = array_namespace(leaves[0][0])
    whole = unflatten(structures[0], [xp.concat(arrays, axis=0) for arrays in zip(*leaves, strict=True)])
    return cast(SamplerOutputs, whole)
