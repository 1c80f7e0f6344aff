"""The record of a check: one JSON document, with each figure also as a part of the ceiling it is held against."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import goals
from benchmarks.gpu.supervise import PartResult

SCHEMA = 1

DRY_RUN = "A dry run: tiny sizes on a host. Its numbers say nothing about any device."


def make_document(head: Mapping[str, Any], parts: Sequence[PartResult], dry: bool) -> dict[str, Any]:
    """head: date, commit, command. The parts are those that have run so far."""
    measurements = {result.name: {**asdict(result), "part": part.name} for part in parts for result in part.results}
    _add_shares(measurements)
    return {
        "benchmark": "gpu-check",
        "schema": SCHEMA,
        "dry_run": dry,
        **({"warning": DRY_RUN} if dry else {}),
        **head,
        "parts": {
            part.name: {"seconds": round(part.seconds, 1), "processes": part.processes, "reason": part.reason}
            for part in parts
        },
        "goals": [asdict(replace(goal, met=None) if dry else goal) for goal in goals(measurements)],
        "measurements": list(measurements.values()),
    }


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """As a whole or not at all: a check that is killed leaves the record of what was done before."""
    beside = path.with_suffix(path.suffix + ".part")
    beside.write_text(json.dumps(document, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _add_shares(measurements: Mapping[str, dict[str, Any]]) -> None:
    """What bytes and operations a second are of this device's own ceilings, measured in this run."""
    copy = _figure(measurements, "ceiling/copy", "bytes_per_second")
    matrix = _figure(measurements, "ceiling/matrix", "flops_per_second")
    for measurement in measurements.values():
        figures = measurement["figures"]
        if copy and "bytes_per_second" in figures:
            figures["of_copy_bandwidth"] = figures["bytes_per_second"] / copy
        if matrix and "flops_per_second" in figures:
            figures["of_matrix_rate"] = figures["flops_per_second"] / matrix


def _figure(measurements: Mapping[str, dict[str, Any]], name: str, figure: str) -> float | None:
    found = measurements.get(name, {}).get("figures", {}).get(figure)
    return float(found) if found else None
