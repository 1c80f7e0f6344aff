"""A fresh process to its first token: with an empty kernel cache, and with the one that the first start left.

There is no checkpoint to read: the weights are made on the device. What reading one takes is `serving/load_rate` times
the bytes of the weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Bench, Measurement
from benchmarks.gpu.scale import Scale


def measurements(scale: Scale, argument: str) -> Iterator[Measurement]:
    yield Measurement("startup/kernels=cold", partial(_start, "cold"))
    yield Measurement("startup/kernels=warm", partial(_start, "warm"))


def _start(kernels: str, bench: Bench) -> dict[str, Any]:
    """Seconds of each phase, and the whole as it is seen from outside."""
    cache = Path(bench.kept.setdefault("cache", str(bench.folder / "startup-cache")))
    command = [sys.executable, "-m", "benchmarks.gpu.first_token", "--backend", bench.scale.backend]
    command += ["--kernel", bench.scale.kernel, *(["--dry-run"] if bench.scale.dry else [])]
    # Both caches that a backend's kernels may lie in.
    caches = {"TRITON_CACHE_DIR": str(cache / "triton"), "XDG_CACHE_HOME": str(cache)}
    spawned = time.time()
    done = subprocess.run(
        [*command, "--spawned", repr(spawned)],
        env={**os.environ, **caches},
        capture_output=True,
        text=True,
        timeout=max(1.0, bench.seconds_left),
    )
    total = time.time() - spawned
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"A fresh process did not reach its first token: {said[-1] if said else done.returncode}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return {"kernels": kernels, "phases": answer["phases"], "first_token": answer["at"] - spawned, "ended": total}
