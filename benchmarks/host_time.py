"""What the host spends on a step in which everybody decodes: the engine on a device that does nothing.

    python -m benchmarks.host_time [--running 1 32 256] [--steps 300] [--synchronous] [--profile]

The demo model's tokenizer and configuration, contexts of 1,000 tokens, greedy; the device gives the words of a text,
each sequence from a place of its own. Microseconds of processor time a step, the 10th percentile, on one core: `step`
is `Engine.step`, the columns after it are its parts, and `message` is what the server adds to send the updates on.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

import numpy as np

from octavo import runner as runner_module
from octavo.backend import Bucket, DeviceConfig, DType, KVCache, KVLayout, Step, StepInputs
from octavo.backend.tree import flatten, unflatten
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.loading import EngineInfo, LoadedModel
from octavo.models.checkpoint import open_checkpoint
from octavo.models.config import DecoderConfig
from octavo.models.resolve import resolve_model
from octavo.models.tokenizer import Tokenizer, load_tokenizer
from octavo.packing import Packer
from octavo.planning import CachePlan
from octavo.reference.device import ReferenceDevice
from octavo.sampling import SamplingParams
from octavo.sampling.inputs import SamplerOutputs
from octavo.scheduling import Scheduler
from octavo_server.bench.text import TEXT
from octavo_server.messages import Updates, encode

CONTEXT, LONGEST, BLOCK_SIZE, BLOCKS = 1000, 8192, 16, 40_000
PARTS = ("plan", "rows", "pack", "sampling", "launch", "collect", "commit", "launched")


class NothingDevice(ReferenceDevice):
    """Takes a step's inputs apart and puts them together, as every device that stages them, and computes nothing."""

    def __init__(self, tokens: list[int], asynchronous: bool) -> None:
        super().__init__(DeviceConfig(backend="reference"))
        claimed = replace(self.info.capabilities, graph_capture=True, asynchronous=asynchronous)
        self.info = replace(self.info, capabilities=claimed)
        self._tokens = np.array(tokens, np.int32)
        self._places = np.arange(4096) * 17
        self._steps = 0

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        return [None] * layout.layers

    def stage(self, inputs: StepInputs) -> StepInputs:
        leaves, structure = flatten(inputs)
        staged: StepInputs = unflatten(structure, leaves)
        return staged

    def compile(self, step: Step, bucket: Bucket) -> Step:
        def run(weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
            self._steps += 1
            places = (self._places[: len(inputs.logit_rows)] + self._steps) % len(self._tokens)
            board = None if inputs.feedback is None else inputs.feedback.last_tokens
            return runner_module.StepOutputs(SamplerOutputs(self._tokens[places]), board), kv

        return run


@dataclass(frozen=True)
class Demo:
    """The demo model without its weights."""

    model: DecoderConfig
    tokenizer: Tokenizer

    @classmethod
    def load(cls) -> Demo:
        files = resolve_model("demo")
        return cls(DecoderConfig.from_hf(open_checkpoint(files).config), load_tokenizer(files))

    def open_engine(self, running: int, asynchronous: bool) -> Engine:
        model = self.model
        device = NothingDevice(self.tokenizer.encode(TEXT), asynchronous)
        layout = KVLayout(model.layers, model.kv_heads, model.head_size, BLOCK_SIZE, DType.FLOAT32)
        info = EngineInfo(
            model="demo", architecture=model.architecture, backend="nothing", device="none", kernel="none",
            dtype="float32", kv_cache_dtype="float32", max_model_len=LONGEST, block_size=BLOCK_SIZE,
            num_blocks=BLOCKS - 1, kv_cache_bytes=0, max_num_seqs=running, max_num_batched_tokens=LONGEST,
            vocab_size=model.vocab_size,
            max_concurrency=1.0, weights_bytes=0, eos_token_ids=(2,), notes=(),
        )  # fmt: skip
        config = EngineConfig(max_num_seqs=running, max_num_batched_tokens=LONGEST)
        cache = CachePlan(layout, BLOCKS, 1, LONGEST)
        # No step computes anything, so there is nothing that weights could be asked for.
        loaded = LoadedModel(info, device, model, None, cache, self.tokenizer)  # type: ignore[arg-type]
        return Engine(loaded, config)


class Parts:
    """Processor time of parts of a step: those functions are watched that each of them is."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside: list[str] = []

    def watch(self) -> None:
        self._wrap("plan", Engine, "_plan")
        self._wrap("rows", Engine, "_rows")
        self._wrap("pack", Packer, "pack")
        self._wrap("sampling", runner_module, "build_inputs")
        self._wrap("launch", runner_module.Runner, "launch")
        self._wrap("collect", runner_module.Runner, "collect")
        self._wrap("commit", Engine, "_commit")
        self._wrap("launched", Scheduler, "launched")

    def _wrap(self, part: str, owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            started = time.thread_time()
            self._inside.append(part)
            try:
                return function(*args, **options)
            finally:
                self._inside.pop()
                seconds = time.thread_time() - started
                self.seconds[part] += seconds
                if self._inside:  # its time is its own and not the outer part's
                    self.seconds[self._inside[-1]] -= seconds

        setattr(owner, name, timed)


def run(engine: Engine, running: int, steps: int, after: Callable[[float, float], None]) -> None:
    """Everybody decodes for that many steps; `after` gets the seconds of the step and of its message."""
    words = engine.tokenizer.encode(TEXT)
    prompts = chain.from_iterable(repeat(words))
    params = SamplingParams(temperature=0.0, max_tokens=steps + 100, ignore_eos=True)
    for number in range(running):
        prompt = [number, *islice(prompts, CONTEXT - 1)]
        engine.add(engine.processor.process(str(number), prompt, params))
    while engine.stats().num_waiting:
        engine.step()
    for _ in range(30):
        engine.step()
    for _ in range(steps):
        started = time.thread_time()
        updates = engine.step()
        stepped = time.thread_time()
        encode(Updates(tuple(updates), engine.stats()))
        after(stepped - started, time.thread_time() - stepped)
        if len(updates) != running:
            raise RuntimeError(f"{len(updates)} of {running} sequences got a token.")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--running", type=int, nargs="+", default=[1, 32, 256])
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--synchronous", action="store_true", help="a device that is never ahead")
    arguments.add_argument(
        "--profile", action="store_true", help="which functions take the time, in place of the table"
    )
    chosen = arguments.parse_args()
    demo, parts = Demo.load(), Parts()
    if chosen.profile:
        for running in chosen.running:
            engine = demo.open_engine(running, not chosen.synchronous)
            with cProfile.Profile() as profile:
                run(engine, running, chosen.steps, lambda step, message: None)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
        return
    columns = ("step", *PARTS, "message")
    print("".join(f"{name:>10}" for name in ("running", *columns)))
    plain = {running: _steps(demo, running, chosen) for running in chosen.running}
    parts.watch()
    for running in chosen.running:
        samples: defaultdict[str, list[float]] = defaultdict(list)

        def note(step: float, message: float, samples: defaultdict[str, list[float]] = samples) -> None:
            for part in PARTS:
                samples[part].append(parts.seconds[part])
            parts.seconds.clear()
            samples["message"].append(message)

        run(demo.open_engine(running, not chosen.synchronous), running, chosen.steps, note)
        figures = {"step": plain[running], **{name: _tenth(values) for name, values in samples.items()}}
        print(f"{running:>10}" + "".join(f"{figures[name]:>10,.0f}" for name in columns))


def _steps(demo: Demo, running: int, chosen: argparse.Namespace) -> float:
    """Microseconds of whole steps, nothing watched inside them."""
    seconds: list[float] = []
    run(
        demo.open_engine(running, not chosen.synchronous),
        running,
        chosen.steps,
        lambda step, message: seconds.append(step),
    )
    return _tenth(seconds)


def _tenth(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 10] * 1e6


if __name__ == "__main__":
    main()
