"""Runs a part in processes of its own, under limits: what crashes or hangs costs itself and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Part

_POLL = 0.1  # seconds between two looks
_PATIENCE = 5.0  # seconds a process has to end by itself
_GRACE = 15.0  # seconds a part may take beyond its time before it is ended
_TOLD = 12  # last lines of a process's output that tell why it ended


@dataclass(slots=True)
class Result:
    """What came of one measurement.

    status: "ok"; "absent" (nothing to measure here, reason says why); "failed" (it raised); "lost" (it crashed, hung or
    was ended; figures are what it had noted); "skipped" (no time was left).
    """

    name: str
    status: str = "lost"
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(slots=True)
class PartResult:
    """A part's results in order. reason: why it ended before its time, if it did; processes: how many it took."""

    name: str
    seconds: float = 0.0
    processes: int = 0
    reason: str = ""
    results: list[Result] = field(default_factory=list)


def run_part(
    part: Part, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float
) -> PartResult:
    """Run a part for at most `seconds` and a little; its log and record are kept in `folder`."""
    outcome = PartResult(part.name)
    record, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    started = time.monotonic()
    while True:
        left = seconds - (time.monotonic() - started)
        if left <= 0:
            outcome.reason = outcome.reason or "Its time was over."
            break
        done = [result.name for result in read_record(record)]
        command = [sys.executable, "-m", "benchmarks.gpu.child", part.module, "--argument", part.argument]
        command += ["--record", str(record), "--folder", str(folder), "--seconds", f"{left:.1f}", *arguments]
        command += ["--skip", *done] if done else []
        outcome.processes += 1
        with log.open("a", encoding="utf-8") as output:
            ended = _watched(command, environment, output, record, left + _GRACE)
        outcome.results = read_record(record)
        news = len(outcome.results) - len(done)
        if ended.code == 0:
            outcome.reason = ""
            break
        outcome.reason = f"{ended.reason} {_tail(log)}".strip()
        _blame(outcome.results, ended.reason)
        if news == 0:  # it did not come as far as a measurement, and another process would not either
            break
        _append(record, outcome.results)
    outcome.seconds = time.monotonic() - started
    return outcome


def read_record(record: Path) -> list[Result]:
    """The results in a record so far, in the order in which they began; one without an end is "lost"."""
    results: dict[str, Result] = {}
    for event in _events(record):
        result = results.setdefault(event["name"], Result(event["name"]))
        if event["event"] == "note":
            result.figures = event["figures"]
        elif event["event"] == "end":
            result.status, result.reason = event["status"], event.get("reason", "")
            result.seconds = event.get("seconds", 0.0)
            result.figures = event.get("figures") or result.figures
    return list(results.values())


@dataclass(frozen=True, slots=True)
class _Ended:
    code: int
    reason: str


def _watched(
    command: Sequence[str], environment: Mapping[str, str], output: Any, record: Path, seconds: float
) -> _Ended:
    """Run a process to its end, or end it and all it started when its time or that of a measurement is over."""
    started = time.monotonic()
    child = subprocess.Popen(
        command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        while child.poll() is None:
            time.sleep(_POLL)
            if time.monotonic() - started > seconds:
                return _Ended(_end(child), "The time of its part was over.")
            if (late := _overdue(record)) is not None:
                return _Ended(_end(child), f"It took longer than its limit of {late:g} s.")
    except BaseException:
        _end(child)
        raise
    if child.returncode < 0:
        return _Ended(child.returncode, f"The process ended by {signal.Signals(-child.returncode).name}.")
    return _Ended(child.returncode, f"The process ended with exit code {child.returncode}.")


def _overdue(record: Path) -> float | None:
    """The limit of the measurement at hand where it has passed it, by the last time the record was written."""
    events = _events(record)
    if not events or events[-1]["event"] == "end":
        return None
    limit = next(float(event["limit"]) for event in reversed(events) if event["event"] == "begin")
    return limit if time.time() - record.stat().st_mtime > limit else None


def _end(child: subprocess.Popen[Any]) -> int:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        try:
            child.wait(_PATIENCE)
            break
        except subprocess.TimeoutExpired:
            continue
    with suppress(ProcessLookupError):  # workers it left behind
        os.killpg(child.pid, signal.SIGKILL)
    return child.returncode if child.returncode is not None and child.returncode != 0 else -int(signal.SIGKILL)


def _blame(results: Sequence[Result], reason: str) -> None:
    """The measurement at hand when a process ended is the one that is lost."""
    for result in results:
        if result.status == "lost" and not result.reason:
            result.reason = reason


def _append(record: Path, results: Sequence[Result]) -> None:
    """Close what a process left open, so that the next one does not try it again."""
    if not results or results[-1].status != "lost":
        return
    last = results[-1]
    event = {"event": "end", "name": last.name, "status": "lost", "reason": last.reason, "figures": last.figures}
    with record.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(event) + "\n")


def _events(record: Path) -> list[dict[str, Any]]:
    if not record.is_file():
        return []
    events = []
    for line in record.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:  # a line that was cut off with its process
            continue
    return events


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "Its last words: " + " | ".join(lines[-_TOLD:])[-1500:] if lines else ""
