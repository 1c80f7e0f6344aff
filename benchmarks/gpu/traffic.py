"""Requests of random token ids, and what driving them through an engine shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu.scale import Traffic
from octavo.engine import Engine
from octavo.processor import EngineRequest
from octavo.sampling.params import SamplingParams

_SAMPLES = 200
"""Points of a progress curve that are kept."""

_NOTED = 5.0
"""Seconds between two notes of a run."""


def prompts_of(traffic: Traffic, vocab_size: int) -> list[list[int]]:
    """Random prompts, the same for the same traffic; no two start alike."""
    rng = np.random.default_rng((traffic.concurrency, traffic.prompt))
    ids: list[list[int]] = rng.integers(vocab_size, size=(traffic.concurrency, traffic.prompt)).tolist()
    return ids


def requests_of(engine: Engine, traffic: Traffic, name: str = "") -> list[EngineRequest]:
    """Greedy requests that take no notice of an end of sequence."""
    params = SamplingParams(temperature=0.0, max_tokens=traffic.output, ignore_eos=True)
    return [
        engine.processor.process(f"{name or traffic.name}-{index}", ids, params)
        for index, ids in enumerate(prompts_of(traffic, engine.info.vocab_size))
    ]


@dataclass(frozen=True, slots=True)
class Point:
    """How far a run was: output tokens after so many seconds since the requests arrived."""

    seconds: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a run. first_tokens: of each request, in order. complete: it was not cut short."""

    points: tuple[Point, ...]
    first_tokens: tuple[int | None, ...]
    complete: bool
    steps: int

    @property
    def seconds(self) -> float:
        return self.points[-1].seconds

    @property
    def tokens(self) -> int:
        return self.points[-1].tokens

    def curve(self) -> list[list[float]]:
        """[seconds, tokens] along the run."""
        stride = max(1, len(self.points) // _SAMPLES)
        kept = [*self.points[::stride], self.points[-1]]
        return [[round(point.seconds, 4), point.tokens] for point in kept]


def drive(
    engine: Engine, requests: Sequence[EngineRequest], seconds: float, note: Callable[[Run], None] = lambda run: None
) -> Run:
    """Run requests that all arrive now; after `seconds` the rest is aborted. Raises RuntimeError when one fails.

    note: is given the run so far every few seconds.
    """
    first: dict[str, int] = {}
    points: list[Point] = []
    tokens, steps, noted = 0, 0, 0.0

    def so_far(complete: bool) -> Run:
        in_order = tuple(first.get(request.request_id) for request in requests)
        return Run(tuple(points), in_order, complete, steps)

    started = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        updates = engine.step()
        steps += 1
        for update in updates:
            if update.error is not None:
                raise RuntimeError(f"A request failed: {update.error}")
            gained = update.sequences[0].token_ids if update.sequences else ()
            if gained:
                first.setdefault(update.request_id, gained[0])
                tokens += len(gained)
        points.append(Point(time.perf_counter() - started, tokens))
        if points[-1].seconds > seconds:
            abandon(engine, requests)
            return so_far(complete=False)
        if points[-1].seconds > noted + _NOTED:
            noted = points[-1].seconds
            note(so_far(complete=False))
    return so_far(complete=True)


def abandon(engine: Engine, requests: Sequence[EngineRequest]) -> None:
    """Abort what still runs."""
    for request in requests:
        engine.abort(request.request_id)
    while engine.has_work:
        engine.step()
