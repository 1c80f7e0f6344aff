"""Faults of a step's way through the device: `stage` and `compile`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.backend import Bucket, DeviceConfig, KVCache, Step, StepInputs
from octavo.backend.tree import flatten, tree_map
from octavo_conformance.case import Level
from octavo_wrong.device import WrongDevice
from octavo_wrong.fault import Fault, in_device

Array = Any

SAMPLED = "No operation sees seeds or positions: the sampler is core's own code, run inside a compiled step."


def faults() -> Iterator[Fault]:
    for device in (
        TablesOfStepBefore,
        AdapterIdsDropped,
        UnknownFieldsDropped,
        SamplingStaysOnHost,
        StagedTwiceFails,
    ):
        yield in_device("stage", device=device)
    for device in (StagedNoiseWithoutPosition, StagedNoiseByRow):
        yield in_device("stage", device=device)
    for device in (OutputsOverwritten, VariantIgnored, InputsOfCapture, CacheOfCapture):
        yield in_device("compile", device=device)
    yield in_device("compile", Level.ENGINE, device=NoiseWithoutSeed, above_ops=SAMPLED)
    for device in (NoiseWithoutPosition, NoiseByRow):
        yield in_device("compile", Level.INVARIANCE, device=device, above_ops=SAMPLED)


# ------------------------------------------------------------------------------------------------------------ stage


class TablesOfStepBefore(WrongDevice):
    """Block tables are uploaded when their shape changes, and kept where it does not."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self._tables = np.zeros((0, 0), np.int32)

    def stage(self, inputs: StepInputs) -> StepInputs:
        tables = inputs.attention.block_tables
        if tables.shape != self._tables.shape:
            self._tables = tables.copy()
        return super().stage(replace(inputs, attention=replace(inputs.attention, block_tables=self._tables)))


class AdapterIdsDropped(WrongDevice):
    """stage() builds new inputs from the fields that its author knew, adapter_ids not among them."""

    def stage(self, inputs: StepInputs) -> StepInputs:
        return super().stage(replace(inputs, adapter_ids=None))


class UnknownFieldsDropped(WrongDevice):
    """stage() builds StepInputs field by field: what a later version adds is lost."""

    def stage(self, inputs: StepInputs) -> StepInputs:
        known = (inputs.token_ids, inputs.logit_rows, inputs.attention, inputs.adapter_ids, inputs.sampling)
        return super().stage(StepInputs(*known))


class SamplingStaysOnHost(WrongDevice):
    """The sampler's arrays are taken through float32, which holds no seed of 32 bits."""

    def stage(self, inputs: StepInputs) -> StepInputs:
        rounded = tree_map(lambda array: array.astype(np.float32).astype(array.dtype), inputs.sampling)
        return super().stage(replace(inputs, sampling=rounded))


class StagedTwiceFails(WrongDevice):
    """Arrays that are on the device already are refused."""

    def stage(self, inputs: StepInputs) -> StepInputs:
        leaves, _ = flatten(inputs)
        if any(not leaf.flags.writeable for leaf in leaves):
            raise TypeError("stage() takes arrays of the host")
        staged = super().stage(inputs)
        return tree_map(_locked, staged)


class StagedNoiseWithoutPosition(WrongDevice):
    """stage() hands on the sampler's positions as 0: a request draws the same at each of its tokens."""

    def stage(self, inputs: StepInputs) -> StepInputs:
        return super().stage(_sampling(inputs, positions=lambda array: np.zeros_like(array)))


class StagedNoiseByRow(WrongDevice):
    """stage() adds the row of the batch to the sampler's seeds."""

    def stage(self, inputs: StepInputs) -> StepInputs:
        return super().stage(_sampling(inputs, seeds=lambda array: array + np.arange(len(array), dtype=np.int32)))


def _sampling(inputs: StepInputs, **changes: Any) -> StepInputs:
    """The inputs with some of the sampler's arrays changed, where there are any of those."""
    if not all(hasattr(inputs.sampling, name) for name in changes):
        return inputs
    changed = {name: change(getattr(inputs.sampling, name)) for name, change in changes.items()}
    return replace(inputs, sampling=replace(inputs.sampling, **changed))


def _locked(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


# ---------------------------------------------------------------------------------------------------------- compile


class OutputsOverwritten(WrongDevice):
    """A compiled step writes its outputs where it wrote those of the call before, as a replayed graph does."""

    def compile(self, step: Step, bucket: Bucket) -> Step:
        buffers: dict[Any, Array] = {}

        def kept(array: Array) -> Array:
            buffer = buffers.setdefault((array.shape, array.dtype), array)
            buffer[...] = array
            return buffer

        def compiled(weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
            outputs, kv = step(weights, kv, inputs)
            return tree_map(kept, outputs), kv

        return compiled


class VariantIgnored(WrongDevice):
    """Compiled steps are kept under the sizes of their bucket alone: other variants get the first one's step."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config, name)
        self._steps: dict[Bucket, Step] = {}

    def compile(self, step: Step, bucket: Bucket) -> Step:
        return self._steps.setdefault(replace(bucket, variant=None, decode_only=False), step)


class InputsOfCapture(WrongDevice):
    """A compiled step keeps the token ids with which it was recorded wherever the shape is the same."""

    def compile(self, step: Step, bucket: Bucket) -> Step:
        recorded: dict[Any, Array] = {}

        def compiled(weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
            ids = recorded.setdefault(inputs.token_ids.shape, inputs.token_ids)
            return step(weights, kv, replace(inputs, token_ids=ids))

        return compiled


class CacheOfCapture(WrongDevice):
    """A compiled step works on a copy of the KV cache and returns the cache that it was given."""

    def compile(self, step: Step, bucket: Bucket) -> Step:
        def compiled(weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
            outputs, _ = step(weights, [layer.copy() for layer in kv], inputs)
            return outputs, kv

        return compiled


class _SamplesWrong(WrongDevice):
    """Compiled steps read wrong seeds or positions, which stage() had handed on as they should be."""

    def compile(self, step: Step, bucket: Bucket) -> Step:
        def compiled(weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
            return step(weights, kv, self.wrong(inputs))

        return compiled

    def wrong(self, inputs: StepInputs) -> StepInputs:
        raise NotImplementedError


class NoiseWithoutPosition(_SamplesWrong):
    """The noise of a compiled step ignores the position of the token that is drawn."""

    def wrong(self, inputs: StepInputs) -> StepInputs:
        return _sampling(inputs, positions=lambda array: np.zeros_like(array))


class NoiseWithoutSeed(_SamplesWrong):
    """The noise of a compiled step is that of the first row's seed for all rows."""

    def wrong(self, inputs: StepInputs) -> StepInputs:
        return _sampling(inputs, seeds=lambda array: np.full_like(array, array[0]))


class NoiseByRow(_SamplesWrong):
    """The noise of a compiled step depends on the row of the batch."""

    def wrong(self, inputs: StepInputs) -> StepInputs:
        return _sampling(inputs, seeds=lambda array: array + np.arange(len(array), dtype=np.int32))
