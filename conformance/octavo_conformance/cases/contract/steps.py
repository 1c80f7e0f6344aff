"""A step's way to the device (`stage`), and steps that a backend records or traces (`compile`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.backend import AttentionMetadata, Bucket, DType, Step, StepInputs
from octavo.backend.tree import flatten
from octavo.sampling.inputs import SamplingInputs
from octavo_conformance.case import Case
from octavo_conformance.cases.contract.one_layer import HEADS, KV_HEADS, OneLayer, Outputs
from octavo_conformance.hostile.batch import Chunk
from octavo_conformance.workbench import CaseFailure, Workbench

_DECODES = (Chunk(9, 1), Chunk(1, 1), Chunk(40, 1), Chunk(17, 1))
_OTHER_DECODES = (Chunk(33, 1), Chunk(12, 1), Chunk(2, 1), Chunk(38, 1))
_MIXED = (Chunk(21, 1), Chunk(5, 1), Chunk(19, 7), Chunk(11, 11))
_OTHER_MIXED = (Chunk(3, 1), Chunk(34, 1), Chunk(11, 11), Chunk(29, 7))


def cases() -> Iterator[Case]:
    yield Case("contract/stage/contents", _contents, quick=True)
    yield Case("contract/stage/sampling", _sampling, quick=True)
    yield Case("contract/stage/one_after_another", _one_after_another, quick=True)
    yield Case("contract/stage/staged_stays", _staged_stays, quick=True)
    yield Case("contract/stage/fields_of_tomorrow", _fields_of_tomorrow, quick=True)
    yield Case("contract/compile/decode", _compiled_decode, quick=True)
    yield Case("contract/compile/mixed", _compiled_mixed, quick=True)
    yield Case("contract/compile/outputs_stay", _outputs_stay, quick=True)
    yield Case("contract/compile/two_buckets", _two_buckets, quick=True)
    yield Case("contract/compile/variants", _variants, quick=True)
    yield Case("contract/compile/cache_goes_on", _cache_goes_on, quick=True)


# ------------------------------------------------------------------------------------------------------------ stage


@dataclass(frozen=True)
class FutureAttention(AttentionMetadata):
    """Attention metadata of a later version."""

    cascade: Any = None


@dataclass(frozen=True)
class FutureInputs(StepInputs):
    """Step inputs of a later version."""

    images: Any = None


@dataclass(frozen=True)
class FutureSampling:
    """Sampler's arrays of a later version, in every kind of branch there is."""

    arrays: tuple[np.ndarray, ...]
    named: dict[str, np.ndarray]
    listed: list[np.ndarray]
    switch: bool = True
    nothing: None = None
    count: int = 3


def _contents(bench: Workbench) -> None:
    layer = OneLayer.build(bench)
    for chunks in (_DECODES, _MIXED, _DECODES[:1]):
        inputs = layer.inputs(bench.rng, chunks)
        _check_staged(bench, inputs, f"{len(chunks)} sequences")
        adapters = bench.rng.integers(-1, 3, len(inputs.token_ids)).astype(np.int32)
        _check_staged(bench, replace(inputs, adapter_ids=adapters), f"{len(chunks)} sequences with adapters")


def _sampling(bench: Workbench) -> None:
    """The sampler's arrays with and without their optional ones."""
    layer, rows = OneLayer.build(bench), 16
    inputs = layer.inputs(bench.rng, _DECODES)
    floats = [bench.rng.standard_normal(rows).astype(np.float32) for _ in range(3)]
    whole = [bench.rng.integers(-(2**31), 2**31, rows).astype(np.int32) for _ in range(4)]
    plain = SamplingInputs(floats[0], whole[0], floats[1], floats[2], whole[1], whole[2], whole[3])
    edited = replace(
        plain,
        edit_ids=bench.rng.integers(0, 100, (rows, 8)).astype(np.int32),
        edit_bias=bench.rng.standard_normal((rows, 8)).astype(np.float32),
        edit_repetition=np.ones((rows, 8), np.float32),
        edit_penalty=bench.rng.standard_normal((rows, 8)).astype(np.float32),
        mask_bits=bench.rng.integers(-(2**31), 2**31, (rows, 4)).astype(np.int32),
    )
    for name, sampling in (("plain", plain), ("edited and masked", edited)):
        _check_staged(bench, replace(inputs, sampling=sampling), f"sampling inputs, {name}")


def _one_after_another(bench: Workbench) -> None:
    """Nothing of an earlier step is left: same shapes, other contents, and back to the first."""
    layer = OneLayer.build(bench)
    first, second = (layer.inputs(bench.rng, _DECODES) for _ in range(2))
    for inputs in (first, second, first, layer.inputs(bench.rng, _MIXED), second):
        _check_staged(bench, inputs, "after a step of the same shapes and other contents")


def _staged_stays(bench: Workbench) -> None:
    """Arrays that are on the device already stay as they are."""
    inputs = OneLayer.build(bench).inputs(bench.rng, _MIXED)
    staged = bench.device.stage(inputs)
    _check_equal_trees(bench, bench.device.stage(staged), inputs, "staged twice")
    on_device = replace(inputs, token_ids=bench.device.upload(inputs.token_ids.copy()))
    _check_equal_trees(bench, bench.device.stage(on_device), inputs, "token_ids on the device already")


def _fields_of_tomorrow(bench: Workbench) -> None:
    inputs = OneLayer.build(bench).inputs(bench.rng, _MIXED)
    arrays = [bench.rng.integers(-9, 9, (3, index + 1)).astype(np.int32) for index in range(5)]
    sampling = FutureSampling((arrays[0], arrays[1]), {"a": arrays[2], "b": arrays[3]}, [arrays[4]])
    _check_staged(bench, replace(inputs, sampling=sampling), "an unknown dataclass as sampling inputs")
    attention = FutureAttention(**_fields(inputs.attention), cascade=arrays[0])
    future = FutureInputs(**{**_fields(inputs), "attention": attention}, images=(arrays[1], arrays[2]))
    _check_staged(bench, future, "arrays in fields that this version does not know")


def _fields(tree: Any) -> dict[str, Any]:
    return {name: getattr(tree, name) for name in tree.__dataclass_fields__}


def _check_staged(bench: Workbench, inputs: StepInputs, what: str) -> None:
    _check_equal_trees(bench, bench.device.stage(inputs), inputs, what)


def _check_equal_trees(bench: Workbench, staged: StepInputs, inputs: StepInputs, what: str) -> None:
    """The staged arrays hold what the host's do, and everything else is as it was; a plan may have been attached."""
    planned = replace(staged, attention=replace(staged.attention, plan=None))
    came, structure = flatten(planned)
    expected, right = flatten(inputs)
    bench.require(
        structure == right,
        f"stage: the result does not have the structure of its argument ({what}): arrays become device arrays, and "
        "types, None, numbers and other static fields stay.",
    )
    for array, host in zip(came, expected, strict=True):
        bench.check_equal("stage", bench.device.download(array), host, f"an array {list(host.shape)}, {what}")


# ---------------------------------------------------------------------------------------------------------- compile


@dataclass(frozen=True, slots=True)
class Call:
    """A step to run: its inputs, and the attention scale by which steps differ."""

    inputs: StepInputs
    scale: float = 0.25


def _compiled_decode(bench: Workbench) -> None:
    layer = OneLayer.build(bench)
    _check_calls(bench, layer, [Call(layer.inputs(bench.rng, _DECODES))], "one decode step")


def _compiled_mixed(bench: Workbench) -> None:
    layer = OneLayer.build(bench)
    _check_calls(bench, layer, [Call(layer.inputs(bench.rng, _MIXED))], "decodes beside prefill chunks")


def _outputs_stay(bench: Workbench) -> None:
    """Downloaded after the step ran again with other inputs: what a replayed graph writes to is copied."""
    layer = OneLayer.build(bench)
    for first, second in ((_DECODES, _OTHER_DECODES), (_MIXED, _OTHER_MIXED)):
        calls = [Call(layer.inputs(bench.rng, chunks)) for chunks in (first, second, second, first)]
        _check_calls(bench, layer, calls, "one bucket called four times, all downloaded at the end")


def _two_buckets(bench: Workbench) -> None:
    layer = OneLayer.build(bench)
    wide = (Chunk(3 * layer.layout.block_size + 1, 1), *_DECODES)
    schedules = [_DECODES, _MIXED, _DECODES[:1], wide, _OTHER_DECODES, _OTHER_MIXED, wide[:2]]
    calls = [Call(layer.inputs(bench.rng, chunks)) for chunks in schedules]
    _check_calls(bench, layer, calls, "buckets of different sizes and kinds in turn")


def _variants(bench: Workbench) -> None:
    """Steps that differ in nothing but Bucket.variant, as those of different sampler features do."""
    layer = OneLayer.build(bench)
    scales = (0.25, 2.0, 0.25, 2.0)
    calls = [Call(layer.inputs(bench.rng, _DECODES), scale) for scale in scales]
    _check_calls(bench, layer, calls, "two variants of one bucket in turn")


def _cache_goes_on(bench: Workbench) -> None:
    """A decode reads what the step before wrote, through the cache that it returned."""
    layer = OneLayer.build(bench)
    prefill = layer.inputs(bench.rng, (Chunk(6, 6), Chunk(3, 3)))
    decode = layer.inputs(bench.rng, (Chunk(6, 1), Chunk(3, 1)))
    # The same sequences, by the same blocks; each attends to the last token of its prompt once more.
    # One of the two may be padded and the other not.
    width = min(step.attention.block_tables.shape[1] for step in (prefill, decode))
    tables = np.zeros_like(decode.attention.block_tables)
    tables[:2, :width] = prefill.attention.block_tables[:2, :width]
    slots = np.zeros_like(decode.attention.slots)
    slots[:2] = prefill.attention.slots[[5, 8]]
    decode = replace(decode, attention=replace(decode.attention, block_tables=tables, slots=slots))
    _check_calls(bench, layer, [Call(prefill), Call(decode)], "a prefill, then a decode of the same sequences")


def _check_calls(bench: Workbench, layer: OneLayer, calls: Sequence[Call], what: str) -> None:
    """Run the calls as plain steps, then compiled, each on a cache of the same contents; compare all of them."""
    blocks = 1 + max(int(call.inputs.attention.block_tables.max()) for call in calls)
    shape = (2, blocks * layer.layout.block_size, KV_HEADS, layer.layout.head_size)
    values = bench.rng.standard_normal(shape).astype(bench.dtype.numpy)
    kv = layer.filled(values)
    plain: list[Outputs] = []
    for call in calls:
        outputs, kv = layer.step(call.scale)(layer.weights, kv, bench.device.stage(call.inputs))
        plain.append(_downloaded(bench, outputs))
    kv = layer.filled(values)
    steps: dict[Bucket, Step] = {}
    late: list[Outputs] = []
    for call in calls:
        bucket = layer.bucket(call.inputs, call.scale)
        if bucket not in steps:
            steps[bucket] = bench.device.compile(layer.step(call.scale), bucket)
        outputs, kv = steps[bucket](layer.weights, kv, bench.device.stage(call.inputs))
        if not isinstance(outputs, Outputs):
            raise CaseFailure(f"compile: the step returns {type(outputs).__name__} where its own type was expected.")
        late.append(outputs)
    for index, (call, right, outputs) in enumerate(zip(calls, plain, late, strict=True)):
        came = _downloaded(bench, outputs)
        meta = call.inputs.attention
        tokens = int(meta.query_starts[-1])
        note = (
            f"call {index + 1} of {len(calls)} of {what}: {tokens} tokens, {len(meta.context_lengths)} sequences, "
            f"{HEADS} heads; a compiled step against the plain one"
        )
        bench.check_form("compile", came.best, right.best.shape, DType.INT32, note)
        expected = right.hidden[:tokens].astype(np.float64)
        bench.measure("model", bench.dtype, came.hidden[:tokens], expected, note)


def _downloaded(bench: Workbench, outputs: Outputs) -> Outputs:
    return Outputs(*(bench.device.download(array).copy() for array in (outputs.hidden, outputs.best)))
