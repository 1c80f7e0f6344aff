"""The sampler on the device, as the runner runs it: the reference backend's tokens, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from octavo.backend import (
    Array,
    AttentionMetadata,
    Bucket,
    Device,
    DeviceConfig,
    KVCache,
    KVLayout,
    Step,
    StepInputs,
)
from octavo.backend.discovery import open_device
from octavo.packing import padded_size
from octavo.sampling.batch import RowSpec, SequenceSampling, build_inputs
from octavo.sampling.inputs import SamplerFeatures, SamplerOutputs
from octavo.sampling.params import SamplingParams
from octavo.sampling.random import derive_seed
from octavo.sampling.sampler import sample
from octavo_conformance.case import Case
from octavo_conformance.workbench import CaseFailure, Workbench

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]

SEEDS = 1000
_AT_A_TIME = 256  # rows: what the runner asks for at most
_SMALL, _LARGE = 512, 49152

KINDS: dict[str, SamplingParams] = {
    "plain": SamplingParams(temperature=1.0),
    "cool": SamplingParams(temperature=0.3),
    "hot": SamplingParams(temperature=3.0),
    "top_k=1": SamplingParams(top_k=1),
    "top_k=40": SamplingParams(top_k=40),
    "top_k=200": SamplingParams(top_k=200),
    "top_p": SamplingParams(top_p=0.9),
    "top_p_narrow": SamplingParams(top_p=0.05),
    "min_p": SamplingParams(min_p=0.1),
    "top_k,top_p,min_p": SamplingParams(temperature=1.5, top_k=50, top_p=0.8, min_p=0.02),
    "top_k=300,top_p": SamplingParams(temperature=0.8, top_k=300, top_p=0.95),
    "penalties": SamplingParams(presence_penalty=1.5, frequency_penalty=-0.5, repetition_penalty=1.3),
    "bias": SamplingParams(logit_bias={3: 8.0, 100: -100.0, 511: 5.0, 0: 2.5}, top_p=0.97),
    "greedy": SamplingParams(temperature=0.0, repetition_penalty=1.1),
}
"""Every way to choose a token, by name."""


def cases() -> Iterator[Case]:
    yield Case(f"invariance/draws/seeds={SEEDS}", _thousand_seeds, quick=True)
    for name, params in KINDS.items():
        run = partial(_kind, params, _SMALL, 64)
        yield Case(f"invariance/draws/{name}/vocabulary={_SMALL}", run, quick=True)
        run = partial(_kind, params, _LARGE, 8)
        yield Case(f"invariance/draws/{name}/vocabulary={_LARGE}", run, quick=name == "top_p")
    yield Case("invariance/draws/mixed_batch", _mixed_batch, quick=True)
    yield Case("invariance/draws/masked", _masked, quick=True)
    yield Case("invariance/draws/row_alone_or_in_any_batch", _row_alone_or_in_any_batch, quick=True)
    yield Case("invariance/draws/positions_and_seeds_matter", _positions_and_seeds_matter, quick=True)
    yield Case("invariance/draws/frequencies", _frequencies, quick=True)


# ----------------------------------------------------------------------------------------------------- as reference


def _thousand_seeds(bench: Workbench) -> None:
    """The issue of a seed: a thousand of them, in every way to draw that looks at the whole vocabulary or a part."""
    logits = _logits(bench, SEEDS, _SMALL)
    with _reference() as reference:
        for name in ("plain", "top_k=40", "top_p", "min_p", "top_k=300,top_p"):
            rows = [_row(KINDS[name], seed, seed % 37, _SMALL) for seed in range(SEEDS)]
            _check_draws(bench, reference, logits, rows, f"{SEEDS} seeds, {name}")


def _kind(params: SamplingParams, vocabulary: int, count: int, bench: Workbench) -> None:
    logits = _logits(bench, count, vocabulary)
    rows = [_row(params, 7000 + index, 3 * index, vocabulary) for index in range(count)]
    with _reference() as reference:
        _check_draws(bench, reference, logits, rows, f"vocabulary {vocabulary}, {params}")


def _mixed_batch(bench: Workbench) -> None:
    """Rows of every kind side by side: the batch turns on what one of them needs."""
    kinds = list(KINDS.values()) * 3
    logits = _logits(bench, len(kinds), _SMALL)
    rows = [_row(params, index, 11 * index, _SMALL) for index, params in enumerate(kinds)]
    with _reference() as reference:
        _check_draws(bench, reference, logits, rows, "rows of every kind in one batch")


def _masked(bench: Workbench) -> None:
    """A grammar's mask, also one that leaves a single token."""
    count = 16
    logits = _logits(bench, count, _SMALL)
    bits = bench.rng.integers(-(2**31), 2**31, (count, _SMALL // 32)).astype(np.int32)
    bits[3] = 0
    bits[3, 7] = 1 << 5
    rows = [_row(KINDS["top_p"], index, index, _SMALL, mask=bits[index]) for index in range(count)]
    with _reference() as reference:
        tokens = _check_draws(bench, reference, logits, rows, "rows with masks")
    bench.require(tokens[3] == 7 * 32 + 5, f"sampler: a mask allows token {7 * 32 + 5} alone, and {tokens[3]} came.")


def _check_draws(
    bench: Workbench, reference: Device, logits: Float32Array, rows: Sequence[RowSpec], what: str
) -> Int32Array:
    expected = _draw(reference, logits, rows)
    came = _draw(bench.device, logits, rows)
    for row, (token, right) in enumerate(zip(came.tolist(), expected.tolist(), strict=True)):
        if token != right:
            wrong = int(np.sum(came != expected))
            scalars = rows[row].sampling.scalars
            raise CaseFailure(
                f"sampler: {wrong} of {len(rows)} rows draw another token than on the reference backend ({what}). The "
                f"first is row {row}, seed {scalars[-1]}, position {rows[row].position}: {right} was expected and "
                f"{token} came."
            )
    return came


# ----------------------------------------------------------------------------------------------------- independence


def _row_alone_or_in_any_batch(bench: Workbench) -> None:
    kinds = list(KINDS.values())
    names = list(KINDS)
    neighbours = 31
    logits = _logits(bench, neighbours + 1, _SMALL)
    for index, params in enumerate(kinds):
        mine = _row(params, 4321, 17, _SMALL)
        alone = int(_draw(bench.device, logits[:1], [mine])[0])
        others = [_row(kinds[(index + other) % len(kinds)], other, other, _SMALL) for other in range(neighbours)]
        for place in (0, 1 + index, neighbours):
            rows = [*others[:place], mine, *others[place:]]
            batch = np.concatenate([logits[1 : place + 1], logits[:1], logits[place + 1 :]])
            token = int(_draw(bench.device, batch, rows)[place])
            bench.require(
                token == alone,
                f"sampler: a row with seed 4321 ({names[index]}) draws token {alone} alone and {token} as row {place} "
                f"of {neighbours + 1}: a draw depends on its own row and on nothing else.",
            )


def _positions_and_seeds_matter(bench: Workbench) -> None:
    """Flat logits, on which noise is all that decides."""
    count = 64
    logits = np.zeros((count, _SMALL), np.float32)
    params = KINDS["plain"]
    by_position = [_row(params, 5, position, _SMALL) for position in range(count)]
    by_seed = [_row(params, seed, 5, _SMALL) for seed in range(count)]
    for what, rows in (("position", by_position), ("seed", by_seed)):
        different = len(set(_draw(bench.device, logits, rows).tolist()))
        # 64 draws of 512 equally likely tokens: 60 different ones are expected, and below 45 there is no chance of.
        bench.require(
            different >= 45,
            f"sampler: {count} rows that differ in their {what} alone draw {different} different tokens of "
            f"{_SMALL} equally likely ones: the noise hardly depends on the {what}.",
        )


def _frequencies(bench: Workbench) -> None:
    """What is drawn follows the softmax: Pearson's test, on more tokens than one group of the sampler's holds."""
    likely = np.array([3, 130, 131, 260, 400, 401, 511])
    shares = np.array([0.3, 0.25, 0.15, 0.12, 0.08, 0.06, 0.04])
    logits = np.full((1, _SMALL), -50.0, np.float32)
    logits[0, likely] = np.log(shares)
    draws = 8 * _AT_A_TIME
    rows = [_row(KINDS["plain"], seed, 2, _SMALL) for seed in range(draws)]
    tokens = _draw(bench.device, np.repeat(logits, draws, 0), rows)
    counts = np.array([int(np.sum(tokens == token)) for token in likely])
    distance = float(np.sum((counts - draws * shares) ** 2 / (draws * shares)))
    # Six degrees of freedom: once in ten thousand beyond 27.9, and the draws are the same in every run.
    bench.require(
        counts.sum() == draws and distance < 27.9,
        f"sampler: {draws} draws fell on tokens {likely.tolist()} {counts.tolist()} times where about "
        f"{np.round(draws * shares).astype(int).tolist()} were expected.",
    )


# -------------------------------------------------------------------------------------------------------- the device


@dataclass(frozen=True, slots=True)
class _Logits:
    """A step's weights: the logits that a model would have computed, float32 [rows, vocabulary]."""

    rows: Array


def _draw(device: Device, logits: Float32Array, rows: Sequence[RowSpec]) -> Int32Array:
    """The tokens of the rows, int32 [rows], through `stage` and `compile` as in the runner."""
    tokens = [
        _draw_some(device, logits[start : start + _AT_A_TIME], rows[start : start + _AT_A_TIME])
        for start in range(0, len(rows), _AT_A_TIME)
    ]
    return np.concatenate(tokens)


def _draw_some(device: Device, logits: Float32Array, rows: Sequence[RowSpec]) -> Int32Array:
    count, vocabulary = logits.shape
    claimed = device.info.capabilities
    pad = claimed.static_shapes or claimed.graph_capture
    size = padded_size(count, pad)
    sampling, features = build_inputs(rows, size, vocabulary)
    padded = np.zeros((size, vocabulary), np.float32)
    padded[:count] = logits
    # Every row is a decode of one token, as when a batch generates.
    first, one = np.arange(size, dtype=np.int32), np.ones(size, np.int32)
    starts = np.arange(size + 1, dtype=np.int32)
    zeros = np.zeros(size, np.int32)
    attention = AttentionMetadata(zeros, zeros.copy(), first, starts, one, zeros.reshape(size, 1).copy(), True)
    inputs = StepInputs(zeros.copy(), first.copy(), attention, sampling=sampling)
    bucket = Bucket(size, size, 1, size, True, features) if pad else Bucket(0, 0, 0, 0, True, features)
    head_size = 16 if claimed.head_sizes is None else claimed.head_sizes[0]
    kv = device.allocate_kv(KVLayout(1, 1, head_size, claimed.block_sizes[0], claimed.kv_dtypes[0], (None,), 1), 2)
    step = device.compile(_sampling_step(device, features), bucket)
    outputs, _ = step(_Logits(device.upload(padded)), kv, device.stage(inputs))
    came: Int32Array = device.download(outputs.token_ids)
    return came[:count]


def _sampling_step(device: Device, features: SamplerFeatures) -> Step:
    ops = device.ops

    def step(weights: _Logits, kv: KVCache, inputs: StepInputs) -> tuple[SamplerOutputs, KVCache]:
        return sample(ops, weights.rows, inputs.sampling, features), kv

    return step


@contextmanager
def _reference() -> Iterator[Device]:
    device = open_device(DeviceConfig(backend="reference")).device
    yield device
    device.close()


# ------------------------------------------------------------------------------------------------------------- rows


def _logits(bench: Workbench, rows: int, vocabulary: int) -> Float32Array:
    """Rows from flat to sharp, with ties."""
    sharpness = np.exp(bench.rng.uniform(-2.0, 2.5, (rows, 1)))
    logits = (bench.rng.standard_normal((rows, vocabulary)) * sharpness).astype(np.float32)
    logits[:, 1::97] = logits[:, :1]
    return logits


def _row(params: SamplingParams, seed: int, position: int, vocabulary: int, mask: Int32Array | None = None) -> RowSpec:
    prompt, output = [1, 5, 9, 5], [3, 100, 3, 7]
    sampling = SequenceSampling(params, prompt, derive_seed(seed, 0), vocab_size=vocabulary)
    return RowSpec(sampling, output, position, mask_bits=mask)
