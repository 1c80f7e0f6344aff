"""`make gpu-check`: everything that can be said about a backend on the card of this machine, in one command.

    python -m benchmarks.gpu [--backend cuda] [--output benchmarks/results/DATE-gpu-BACKEND.json]
    python -m benchmarks.gpu --dry-run

The machine needs Python with its headers, a C compiler, torch, triton and transformers; build/gpu-bundle brings
the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import table
from benchmarks.gpu.bundle import commit
from benchmarks.gpu.document import make_document, write_document
from benchmarks.gpu.environment import BUNDLE, ROOT, MissingPackageError, make_environment
from benchmarks.gpu.plan import MINUTES, PARTS, Part
from benchmarks.gpu.supervise import PartResult, run_part
from benchmarks.gpu.verdict import NO_TIME, succeeded

_RESULTS = ROOT / "benchmarks" / "results"

_LEAST = 10.0
"""Seconds below which a part is not begun."""


def main() -> None:
    given = _arguments()
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        environment = make_environment(given.site, given.bundle)
    except MissingPackageError as error:
        sys.exit(str(error))
    parts = [part for part in PARTS if not given.parts or part.name in given.parts]
    if given.dry_run:
        parts = [part for part in parts if part.name != "conformance-whole"]  # the quick one takes the same path
    options = ["--backend", given.backend, "--kernel", given.kernel, *(["--dry-run"] if given.dry_run else [])]
    document = _check(parts, options, environment, given)
    print(*table.lines(document), sep="\n", flush=True)
    if given.output is not None:
        print(f"Wrote {given.output}")
    sys.exit(0 if succeeded(document) else 1)


def _check(
    parts: Sequence[Part], options: Sequence[str], environment: Mapping[str, str], given: argparse.Namespace
) -> dict[str, Any]:
    """Run the parts in turn; the record is written after each."""
    started = time.monotonic()
    head = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(given.bundle),
        "command": ["python", "-m", "benchmarks.gpu", *sys.argv[1:]],
        "backend": given.backend,
    }
    done: list[PartResult] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = scratch if given.logs is None else given.logs
        for part in parts:
            left = 60 * given.minutes - (time.monotonic() - started)
            if left < _LEAST:
                done.append(PartResult(part.name, reason=NO_TIME))
            else:
                print(f"{part.name} ...", file=sys.stderr, flush=True)
                done.append(run_part(part, options, environment, Path(folder), min(part.seconds, left)))
            document = make_document({**head, "seconds": time.monotonic() - started}, done, given.dry_run)
            if given.output is not None:
                write_document(document, given.output)
    return document


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="cuda", help="the backend to check (cuda)")
    parser.add_argument("--kernel", default="auto", help="which of its attention kernels (auto)")
    parser.add_argument("--output", type=Path, help="write the record, JSON, to this file")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"time for all of it ({MINUTES})")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", help=f"only these: {', '.join(names)}")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes under Triton's interpreter, on any machine")
    parser.add_argument("--logs", type=Path, help="keep each part's log, record and conformance report in this folder")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="wheels that this machine lacks (build/gpu-bundle)")
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "gpu-site", help="where they are unpacked")
    given = parser.parse_args()
    if given.output is not None:
        given.output = given.output.absolute()
        if not given.output.parent.is_dir():
            parser.error(f"--output {given.output}: there is no folder {given.output.parent}.")
        if given.dry_run and given.output.is_relative_to(_RESULTS):
            parser.error("A dry run has no results: its record does not belong in benchmarks/results.")
    if given.logs is not None:
        given.logs = given.logs.absolute()
        given.logs.mkdir(parents=True, exist_ok=True)
    return given


if __name__ == "__main__":
    main()
