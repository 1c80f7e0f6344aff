"""Warm-up: before the first request, steps for nobody are run, so that kernels are compiled and decode steps recorded.

Largest first: recordings share memory, and a smaller one fits into what a larger one has claimed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

from octavo.backend import BackendError, DeviceLostError, DeviceOutOfMemoryError
from octavo.loading import EngineInfo, Progress
from octavo.packing import SMALLEST_BUCKET, StepShape, padded_size
from octavo.runner import Runner
from octavo.sampling.params import SamplingParams

STAGE = "compiling kernels and recording decode steps"

GREEDY, RANDOM = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)
"""The two samplers that plain requests use. All others are compiled when they are first used."""

NUCLEUS = SamplingParams(temperature=1.0, top_p=0.9)
"""What chat clients send. It is rehearsed where compiling takes so long that a request would notice."""

NEEDED_BY_ALL = 2
"""The first rehearsals, a prefill and a decode, that compile nearly every kernel: they are run whatever the time. A
request would wait as long for them, and a first step that takes a minute looks like a device that hangs."""

_log = logging.getLogger(__name__)


def warm_up(
    runner: Runner,
    info: EngineInfo,
    seconds: float,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Rehearse the steps that requests will need, for as long as start-up can wait.

    After `seconds` of `clock` no further one is begun; those that are left are compiled and recorded when they are
    first used. A step that fails ends the warm-up with a sentence in the log: a request that needs it will be told, and
    others can be served. Raises BackendError where the device is lost, DeviceOutOfMemoryError where one of the first
    does not fit on a device that pads all its steps: there, every request would need one as large.
    """
    steps = list(rehearsals(info, runner.pads_decodes, runner.pads_prefills))
    started = clock()
    for number, (shape, params) in enumerate(steps):
        if number >= NEEDED_BY_ALL and clock() - started >= seconds:
            _log.info(
                "The warm-up ends after %g seconds (warm_up_seconds) with %d of %d steps; the others are compiled and "
                "recorded when they are first used.",
                seconds,
                number,
                len(steps),
            )
            break
        if progress is not None:
            progress(STAGE, number / len(steps))
        try:
            runner.rehearse(shape, params)
            if number + 1 == NEEDED_BY_ALL:
                runner.copy([(0, 0)])  # what parallel completions need, and little beside a step
        except Exception as error:
            if isinstance(error, DeviceLostError) or not runner.alive():
                raise BackendError(
                    f"The device of backend {info.backend!r} was lost in the warm-up: {type(error).__name__}: {error}"
                ) from error
            if runner.pads_prefills and number < NEEDED_BY_ALL and isinstance(error, DeviceOutOfMemoryError):
                raise
            _log.warning(
                "The warm-up ends early: a step of %d sequences with %d tokens each and %d blocks failed, and a "
                "request that needs such a step would fail too: %s: %s",
                shape.sequences,
                shape.tokens,
                shape.blocks,
                type(error).__name__,
                error,
            )
            break
    if progress is not None:
        progress(STAGE, 1.0)


def rehearsals(
    info: EngineInfo, pads_decodes: bool, pads_prefills: bool = False
) -> Iterator[tuple[StepShape, SamplingParams]]:
    """The largest prefill, then decodes: each bucket, the largest first, or one size where a step has no bucket.

    Where prefills are padded too, each of their sizes is compiled, and the largest decode comes before them all: a
    device may take its tables as the largest that there will be, and then has no need of narrower ones, the last.
    """
    decodes = list(_decodes(info, pads_decodes))
    if not pads_prefills:
        yield _prefill(info, 1, min(info.max_num_batched_tokens, info.max_model_len)), GREEDY
        yield from product(decodes, (GREEDY, RANDOM))
        return
    prefills = list(_prefills(info))
    widest = [shape for shape in decodes if shape.blocks == decodes[0].blocks]
    narrower = [shape for shape in decodes if shape.blocks != decodes[0].blocks]
    first = ((widest[0], GREEDY), (prefills[0], GREEDY))
    yield from first
    yield from (each for each in product([*widest, *prefills], (GREEDY, RANDOM)) if each not in first)
    yield from product([*widest, *prefills], (NUCLEUS,))
    yield from product(narrower, (GREEDY, RANDOM))


def _decodes(info: EngineInfo, pads: bool) -> Iterator[StepShape]:
    widest = -(-info.max_model_len // info.block_size)
    for sequences in _buckets(info.max_num_seqs) if pads else (info.max_num_seqs,):
        for blocks in _buckets(widest) if pads else (widest,):
            yield StepShape(sequences, 1, blocks)


def _prefills(info: EngineInfo) -> Iterator[StepShape]:
    """Each size, the largest first, of as few sequences as have so many tokens: with few rows of logits, and with as
    many as there can be in a step of decodes beside a prefill.
    """
    most = min(info.max_num_batched_tokens, info.max_num_seqs * info.max_model_len)
    for size in _buckets(most):
        sequences = -(-min(size, most) // info.max_model_len)
        shape = _prefill(info, sequences, min(size // sequences, info.max_model_len))
        many = replace(shape, rows=min(size, info.max_num_seqs))
        yield from (shape, many) if many.rows > SMALLEST_BUCKET else (shape,)


def _prefill(info: EngineInfo, sequences: int, tokens: int) -> StepShape:
    return StepShape(sequences, tokens, -(-tokens // info.block_size))


def _buckets(largest: int) -> Iterator[int]:
    """The sizes that up to `largest` are padded to, in falling order."""
    size = padded_size(largest, True)
    while size >= SMALLEST_BUCKET:
        yield size
        size //= 2
