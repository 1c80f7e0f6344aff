"""One cold start, in a fresh process: from nothing to the first token, with a stopwatch on each phase.

`startup` runs it as `python -c COMMAND`, so that the first thing the interpreter does is to note the time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

COMMAND = "import time; now = time.time(); from octavo_server.bench.cold_start import main; main(now)"
"""What a fresh interpreter is given with -c; a task of JSON follows as its argument."""

PHASES = {
    "open_device": "backend",
    "resolve_model": "resolve",
    "open_checkpoint": "resolve",
    "load_tokenizer": "tokenizer",
    "load_weights": "weights",
}
"""Functions that `octavo.loading.load_model` calls, and the phase their time is counted to."""


def main(interpreter_ready: float) -> None:
    """Print {phase.

    Seconds}, in the order in which they happened, as one line of JSON after the first token.
    """
    task = json.loads(sys.argv[1])
    phases = {"interpreter": interpreter_ready - task["spawned"]}
    from octavo import loading
    from octavo.config import EngineConfig
    from octavo.engine import Engine
    from octavo.sampling.params import SamplingParams

    phases["imports"] = time.time() - interpreter_ready
    config = EngineConfig(**task["config"])
    # In place of the functions, so that the start that is measured is the one that users have.
    for name, phase in PHASES.items():
        setattr(loading, name, _timed(getattr(loading, name), phase, phases))
    started = time.time()
    loaded = loading.load_model(config)
    inside = sum(phases[phase] for phase in dict.fromkeys(PHASES.values()))
    phases["planning"] = time.time() - started - inside
    started = time.time()
    engine = Engine(loaded, config)
    phases["kv_cache"] = time.time() - started
    started = time.time()
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    engine.add(engine.processor.process("first", task["prompt"], params))
    tokens: list[int] = []
    while engine.has_work:
        for update in engine.step():
            tokens += update.sequences[0].token_ids
    phases["first_token"] = time.time() - started
    print(json.dumps({"phases": phases, "token_ids": tokens}), flush=True)


def _timed(function: Callable[..., Any], phase: str, phases: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.time()
        try:
            return function(*arguments, **named)
        finally:
            phases[phase] = phases.get(phase, 0.0) + time.time() - started

    return timed
