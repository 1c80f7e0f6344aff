"""Makes the published table of the trial: `python tests/conformance/trial/table.py`, from the root of the repository.

A backend whose operation is wrong runs the quick cases of that operation, one that is wrong otherwise those of level
`contract`; the further levels only where these have not caught it. `--whole` runs every case of every level, `--only
NAME` tries one fault, without writing.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
DOCUMENT = ROOT / "docs" / "conformance-trial.md"
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # where octavo_wrong and its entry point are found

from octavo_wrong.catalogue import FAULTS  # noqa: E402
from octavo_wrong.fault import Fault  # noqa: E402

from octavo.backend import BackendError, DeviceConfig  # noqa: E402
from octavo.backend.discovery import open_device  # noqa: E402
from octavo_conformance.case import Case, Level  # noqa: E402
from octavo_conformance.running.execute import execute  # noqa: E402
from octavo_conformance.running.process import Worker  # noqa: E402
from octavo_conformance.running.wire import Assignment  # noqa: E402
from octavo_conformance.suite import cases  # noqa: E402
from octavo_conformance.tolerances import Tolerances  # noqa: E402
from octavo_conformance.verdict import Outcome, Verdict  # noqa: E402
from octavo_conformance.workbench import Workbench  # noqa: E402

LEVELS = (Level.CONTRACT, Level.OPS, Level.STEP, Level.ENGINE, Level.INVARIANCE)
PATIENCE = 0.05  # of the time limits, where a fault makes a case hang

HEAD = """# The suite on trial

A suite that passes everything proves nothing. These backends are wrong on purpose, one mistake each; the conformance
suite has to catch every one of them, an operation's by a case of that operation. The table is made by
`make conformance-trial`, and `tests/conformance/test_trial.py` holds it to what the suite finds: the case in the last
column fails on that backend and passes on the same backend without the fault.

"Caught by" counts the cases of the quick set that fail, of those that were run: for an operation its own, otherwise
those of level `contract`, and further levels only where none before had caught the fault. To see one of them caught,
put `tests/conformance/trial` on `PYTHONPATH` and run `octavo conformance run --backend wrong-FAULT --case CASE`.

"""


@dataclass(frozen=True, slots=True)
class Row:
    """What the trial of one fault came to. counts: level, cases that failed, cases that were run."""

    fault: Fault
    case: str
    counts: tuple[tuple[str, int, int], ...]

    def __str__(self) -> str:
        caught = ", ".join(f"{level} {failed} of {run}" for level, failed, run in self.counts if failed)
        case = f"`{self.case}`" if self.case else "**none**"
        return f"| `{self.fault.name}` | {self.fault.what} | `{self.fault.op}` | {caught or 'nothing'} | {case} |"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--only", default="", metavar="NAME")
    parser.add_argument("--output", type=Path, default=DOCUMENT)
    options = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if options.only in ("", fault.name)]
    rows = []
    for fault in chosen:
        rows.append(try_fault(fault, options.whole))
        print(rows[-1], flush=True)
    if not options.only:
        options.output.write_text(document(rows))
    return sum(not row.case for row in rows)


def document(rows: Sequence[Row]) -> str:
    """The page."""
    lines = [
        f"{len(rows)} faults, {sum(bool(row.case) for row in rows)} caught.",
        "",
        "| fault | what is wrong | part | caught by | for example |",
        "|---|---|---|---|---|",
        *(str(row) for row in rows),
    ]
    above = [row for row in rows if row.fault.above_ops]
    if above:
        lines += ["", "## Why not by an operation", ""]
        lines += [f"- `{row.fault.name}` ({row.fault.level.value}): {row.fault.above_ops}" for row in above]
    return HEAD + "\n".join(lines) + "\n"


def try_fault(fault: Fault, whole: bool = False) -> Row:
    """Run a wrong backend through the levels, the one where it must be caught at the latest first where that is low."""
    counts: list[tuple[str, int, int]] = []
    caught: list[Case] = []
    for level in LEVELS if fault.above_ops or whole else LEVELS[LEVELS.index(fault.level) :]:
        if caught and not whole:
            break
        chosen = [case for case in cases() if case.level is level and (whole or case.quick)]
        own = [case for case in chosen if case.subject == fault.op]
        if level is Level.OPS and own and not whole:
            chosen = own
        failed = [case for case, outcome in trial(fault, chosen) if outcome.verdict is Verdict.FAILED]
        counts.append((level.value, len(failed), len(chosen)))
        caught += failed
    # The case of the fault's own operation, or part of the contract, says most; the simple ones come first.
    best = sorted(caught, key=lambda case: (case.level is not fault.level, case.subject != fault.op))
    return Row(fault, best[0].id if best else "", tuple(counts))


def trial(fault: Fault, chosen: Sequence[Case]) -> Iterator[tuple[Case, Outcome]]:
    """The outcome of cases on a wrong backend: in this process where that is safe."""
    config = DeviceConfig(backend=fault.backend_name)
    if fault.fatal:
        yield from _in_process_of_their_own(config, chosen)
        return
    try:
        device = open_device(config).device
    except BackendError as error:  # the runner has every case fail
        yield from ((case, Outcome(case.id, Verdict.FAILED, str(error))) for case in chosen)
        return
    bench = Workbench(device, config, Tolerances())
    for case in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of numbers that overflow
            outcome = execute(case, bench)
        yield case, outcome


def _in_process_of_their_own(config: DeviceConfig, chosen: Sequence[Case]) -> Iterator[tuple[Case, Outcome]]:
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    worker = Worker(Assignment(config.backend, config.kernel, {}), threads=1, patience=PATIENCE)
    try:
        for case in chosen:
            yield case, worker.run(case)
    finally:
        worker.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
