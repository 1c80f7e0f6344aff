"""One step compiled; and many, in processes of their own: a compiler that crashes takes one step with it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import TypeAlias

from octavo.backend import DeviceOutOfMemoryError, DType
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.models.config import DecoderConfig
from octavo.models.weights import load_weights, parameter_count
from octavo.planning import CachePlan, plan_cache
from octavo.runner import Runner

from .breaking import FAULTS
from .cache import FigureCache
from .compiling import AheadOfTime, NothingToRunOnError
from .device import TopologyDevice
from .figures import Expected, Figures, read_figures
from .steps import SEQUENCES, Case

MAX_MODEL_LEN = 8192
"""Tokens of the longest context: block tables and rotary tables are as wide."""

PATIENCE = 1200.0
"""Seconds after which a compilation is given up."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A step with its figures, and what they should be."""

    figures: Figures
    expected: Expected


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A step that does not fit into its chips' memory. sentence: what a user is told."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A compilation that came to nothing, and why."""

    reason: str


Outcome: TypeAlias = Compiled | TooLarge | Failure


def compile_case(case: Case, cache: FigureCache) -> Outcome:
    """Plan, load, allocate and rehearse as an engine does; the rehearsal ends with the compiled step."""
    ahead = AheadOfTime(case.topology, lambda fingerprint: cache.get(fingerprint) is not None)
    device = TopologyDevice(case.chip, case.shards, ahead)
    checkpoint = case.model.checkpoint()
    model = DecoderConfig.from_hf(checkpoint.config)
    plan = _plan(device, model, case)
    weights = load_weights(model, checkpoint, device, DType.BFLOAT16, positions=MAX_MODEL_LEN)
    runner = Runner(device, model, weights, plan, lanes=SEQUENCES)
    try:
        case.step.run(runner, plan)
    except NothingToRunOnError as end:
        figures = cache.get(end.fingerprint)
        if figures is None:
            kv = device.allocate_kv(plan.layout, plan.num_blocks)
            figures = read_figures(end.compiled, end.seconds, plan, kv)
            cache.put(end.fingerprint, figures)
        return Compiled(figures, case.step.expected(model, plan, case.shards))
    except DeviceOutOfMemoryError as error:
        return TooLarge(str(error))
    return Failure("The step ran to its end without being compiled.")


def compile_all(cases: Sequence[Case], cache: FigureCache, jobs: int, done: Callable[[Case], None]) -> list[Outcome]:
    """Every case's outcome, in order. jobs: compilations at once. done: called as each is there."""
    outcomes: dict[int, Outcome] = {}
    waiting = list(range(len(cases)))
    running: list[_Compilation] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(_Compilation.start(waiting[0], cases[waiting.pop(0)], cache))
        wait([each.outcome for each in running], timeout=1.0)
        for each in [each for each in running if each.ended]:
            running.remove(each)
            outcomes[each.number] = each.collect()
            done(cases[each.number])
    return [outcomes[number] for number in range(len(cases))]


def _plan(device: TopologyDevice, model: DecoderConfig, case: Case) -> CachePlan:
    """The engine's own plan. Where that finds no room for a KV cache: one for a single request, so that it is the
    compiler that says so.
    """
    weights = parameter_count(model, case.shards) * DType.BFLOAT16.itemsize
    config = EngineConfig(max_model_len=MAX_MODEL_LEN, max_num_seqs=SEQUENCES, tensor_parallel_size=case.shards)
    try:
        return plan_cache(config, device, model, case.kv_dtype, weights)
    except ConfigError:
        plan = plan_cache(config, device, model, case.kv_dtype)
        return replace(plan, num_blocks=-(-MAX_MODEL_LEN // plan.layout.block_size) + 1)


@dataclass(frozen=True, slots=True)
class _Compilation:
    number: int
    process: multiprocessing.process.BaseProcess
    outcome: Connection
    started: float

    @classmethod
    def start(cls, number: int, case: Case, cache: FigureCache) -> _Compilation:
        # Not forked: libtpu and jax have threads.
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_compile, args=(case, cache, sender), daemon=True)
        process.start()
        sender.close()
        return cls(number, process, receiver, time.monotonic())

    @property
    def ended(self) -> bool:
        return self.outcome.poll() or time.monotonic() - self.started > PATIENCE

    def collect(self) -> Outcome:
        try:
            outcome: Outcome = (
                self.outcome.recv() if self.outcome.poll() else Failure(f"not done after {PATIENCE:.0f} s")
            )
        except EOFError:
            self.process.join()
            outcome = Failure(f"the compiler's process ended with {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        self.outcome.close()
        return outcome


def _compile(case: Case, cache: FigureCache, sender: Connection) -> None:
    try:
        with FAULTS[case.fault]() if case.fault else nullcontext():
            sender.send(compile_case(case, cache))
    except Exception as error:
        sender.send(Failure(f"{type(error).__name__}: {error}"))
