"""How long a fresh process takes to its first token, and where the time goes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import Any

from octavo.config import EngineConfig
from octavo.loading import plan_engine
from octavo_server.bench.cold_start import COMMAND
from octavo_server.bench.errors import BenchError
from octavo_server.bench.facts import record, threads_of
from octavo_server.bench.summary import Summary

PROMPT = "The capital of France is"


def measure(config: EngineConfig, repeat: int) -> dict[str, object]:
    """The record of `octavo bench startup`.

    One start unmeasured, to warm the disk's cache, then `repeat` measured ones. Raises BenchError when one
    fails.
    """
    config = replace(config, threads=threads_of(config))
    info = plan_engine(config)  # fetches the model where need be, and gives the errors their own sentences
    start(config)
    starts = [start(config) for _ in range(repeat)]
    phases = {name: Summary.of([each["phases"][name] for each in starts]).as_data() for name in starts[0]["phases"]}
    totals = Summary.of([each["total"] for each in starts])
    shape: dict[str, object] = {"repeat": repeat, "prompt": PROMPT, "output_tokens": 1}
    return record(
        "startup",
        info,
        threads_of(config),
        shape,
        {"total_seconds": totals.as_data(), "phases_seconds": phases},
    )


def start(config: EngineConfig) -> dict[str, Any]:
    """Phases and total of one fresh process, in seconds.

    The total is from the spawn until the first token has arrived here. Raises BenchError when none does.
    """
    options = {**asdict(replace(config, backend_options={})), "backend_options": dict(config.backend_options)}
    spawned = time.time()
    task = json.dumps({"config": options, "prompt": PROMPT, "spawned": spawned})
    with subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, task], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        line = child.stdout.readline() if child.stdout is not None else ""
        total = time.time() - spawned
        _, errors = child.communicate()
    if not line:
        last = errors.strip().splitlines()
        raise BenchError(f"A fresh process did not reach its first token: {last[-1] if last else 'it ended'}.")
    return {**json.loads(line), "total": total}
