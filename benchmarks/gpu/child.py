"""One part in a process of its own: `python -m benchmarks.gpu.child MODULE --record FILE`.

Each measurement is written down when it begins, whenever it has something to show, and when it ends: a process that
crashes or hangs loses the measurement at hand and nothing before it.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import AbsentError, Bench, Measurement, Recorder
from benchmarks.gpu.scale import scale_of

LOST = 3
"""Exit code of a part whose device no longer answers: the measurements to come need a new process."""


def run(bench: Bench, measurements: Iterator[Measurement], skip: set[str]) -> int:
    """Run all but those in `skip`; the exit code."""
    for measurement in measurements:
        if measurement.name in skip:
            continue
        bench.current = measurement.name
        if bench.seconds_left <= 0:
            bench.recorder.write("end", measurement.name, status="skipped", reason="The time of its part was over.")
            continue
        bench.recorder.write("begin", measurement.name, limit=measurement.limit)
        started = time.monotonic()
        status, figures, reason = _outcome(bench, measurement)
        bench.recorder.write(
            "end",
            measurement.name,
            status=status,
            seconds=round(time.monotonic() - started, 3),
            figures=figures,
            reason=reason,
        )
        if status == "failed" and not _alive():
            return LOST
        _tidy()
    return 0


def _outcome(bench: Bench, measurement: Measurement) -> tuple[str, dict[str, Any], str]:
    try:
        return "ok", dict(measurement.run(bench)), ""
    except AbsentError as absent:
        return "absent", {}, str(absent)
    except Exception as error:  # whatever it is, the other measurements go on
        traceback.print_exc()
        return "failed", {}, f"{type(error).__name__}: {error}".strip()[:2000]


def _alive() -> bool:
    """Whether the accelerator still answers: after an illegal access nothing in this process ever works again."""
    module = _accelerator()
    if module is None:
        return True
    try:
        module.synchronize()
    except Exception:  # whatever it is, it is no answer
        return False
    return True


def _tidy() -> None:
    """Give memory back before the next measurement."""
    gc.collect()
    module = _accelerator()
    if module is not None:
        module.empty_cache()


def _accelerator() -> Any:
    """torch's module of the accelerator (torch.cuda, torch.xpu), where torch is imported and there is one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.accelerator.is_available():
        return None
    return torch.get_device_module(torch.accelerator.current_accelerator())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", help="which has `measurements(scale, argument)`")
    parser.add_argument("--argument", default="")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--skip", nargs="*", default=[])
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    with given.record.open("a", encoding="utf-8") as stream:
        scale = scale_of(given.backend, given.kernel, given.dry_run)
        bench = Bench(scale, given.argument, given.folder, deadline, Recorder(stream))
        measurements = import_module(given.module).measurements(scale, given.argument)
        code = run(bench, measurements, set(given.skip))
    sys.exit(code)


if __name__ == "__main__":
    main()
