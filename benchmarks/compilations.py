"""How many programs a mixed workload makes the XLA backend compile, and when: the engine, in this process.

    python -m benchmarks.compilations [--minutes 10] [--warm-up-seconds 600] [--output FILE]

Requests come so that 1 to 48 are there at a time, up and down once in three minutes; prompts of 1 to 700 tokens,
outputs of 1 to 160; greedy and drawn, with every kind of truncation, penalties, logprobs and prompt logprobs, n = 2.
The clock of the workload stands still while a program is compiled: how fast this machine compiles changes nothing of
what is compiled. Nothing that an earlier run compiled is read: the cache is off. The line of each minute: requests
done, tokens, programs so far, seconds spent compiling.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.host import package_versions, processor_name
from octavo.sampling import SamplingParams
from octavo_server.bench.text import TEXT

MOST, PERIOD = 48, 180.0  # running sequences, and seconds from one peak to the next

KINDS: tuple[tuple[int, dict[str, object]], ...] = (  # weight, and what the request asks for
    (40, {"temperature": 0.0}),
    (15, {"temperature": 0.8, "top_p": 0.9}),
    (15, {"temperature": 1.0}),
    (10, {"temperature": 0.7, "top_k": 40}),
    (5, {"temperature": 0.9, "min_p": 0.05}),
    (5, {"temperature": 0.0, "logprobs": 5}),
    (4, {"temperature": 0.8, "n": 2}),
    (3, {"temperature": 0.0, "repetition_penalty": 1.2}),
    (2, {"temperature": 1.0, "presence_penalty": 0.5, "top_p": 0.95}),
    (1, {"temperature": 0.0, "prompt_logprobs": 0}),
)


@dataclass(frozen=True, slots=True)
class Minute:
    """The state at the end of a minute of the workload. programs, compile_seconds: from start-up on. live: requests
    that run or wait.
    """

    minute: float
    requests: int
    output_tokens: int
    programs: int
    compile_seconds: float
    live: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--warm-up-seconds", type=float, default=600.0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    started = time.perf_counter()
    engine = Engine.from_config(
        EngineConfig(
            model="demo",
            backend="xla",
            max_model_len=1024,
            warm_up_seconds=given.warm_up_seconds,
            backend_options={"cache": "off"},
        )
    )
    compilations = engine._runner._device.compilations  # type: ignore[attr-defined]
    ahead = {"programs": compilations.count, "compile_seconds": compilations.seconds}
    print(f"start-up {time.perf_counter() - started:.0f} s, {ahead['programs']} programs compiled ahead", flush=True)
    minutes = []
    for minute in run(engine, 60.0 * given.minutes, compilations):
        minutes.append(minute)
        print(asdict(minute), flush=True)
    engine.close()
    if given.output:
        facts = {
            "benchmark": "compilations",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": ["python", "-m", "benchmarks.compilations", *sys.argv[1:]],
            "cpu": processor_name(),
            "versions": package_versions(("octavo-xla", "jax", "jaxlib", "numpy")),
            "ahead": ahead,
            "minutes": [asdict(minute) for minute in minutes],
        }
        given.output.write_text(json.dumps(facts, indent=2) + "\n")


def run(engine: Engine, seconds: float, compilations: object) -> Iterator[Minute]:
    """Drive the engine for so long; the state once a minute."""
    text = engine.tokenizer.encode(TEXT, add_special_tokens=False)
    dealer = random.Random(0)
    started, before = time.perf_counter(), compilations.seconds  # type: ignore[attr-defined]

    def clock() -> float:
        return time.perf_counter() - started - (compilations.seconds - before)  # type: ignore[attr-defined]

    done = tokens = number = reported = 0
    live: set[str] = set()
    while (now := clock()) < seconds:
        wanted = 1 + (MOST - 1) * (0.5 - 0.5 * math.cos(2 * math.pi * now / PERIOD))
        while len(live) < wanted:
            params = SamplingParams(
                max_tokens=dealer.randint(1, 160),
                ignore_eos=True,
                **_kind(dealer),  # type: ignore[arg-type]
            )
            start = dealer.randrange(len(text))
            prompt = [text[(start + index) % len(text)] for index in range(dealer.randint(1, 700))]
            request = engine.processor.process(f"request-{number}", prompt, params)
            engine.add(request)
            live.add(request.request_id)
            number += 1
        for update in engine.step():
            if update.error is not None:
                raise RuntimeError(update.error)
            tokens += sum(len(sequence.token_ids) for sequence in update.sequences)
            if update.finished:
                live.discard(update.request_id)
                done += 1
        if (passed := clock()) >= min(seconds, 60.0 * (reported + 1)):
            reported = int(passed // 60.0)
            yield _minute(passed, done, tokens, compilations, len(live))


def _kind(dealer: random.Random) -> dict[str, object]:
    weights, kinds = zip(*KINDS, strict=True)
    return dealer.choices(kinds, weights)[0]


def _minute(passed: float, done: int, tokens: int, compilations: object, running: int) -> Minute:
    count, spent = compilations.count, compilations.seconds  # type: ignore[attr-defined]
    return Minute(round(passed / 60.0, 2), done, tokens, count, round(spent, 1), running)


if __name__ == "__main__":
    main()
