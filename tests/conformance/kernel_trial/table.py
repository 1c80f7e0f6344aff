"""Makes docs/kernels-trial.md, with `tests/conformance` on PYTHONPATH: `python -m kernel_trial.table`.

Each fault is tried with the cases of its operation until one catches it. `--only NAME` tries one, without writing.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kernel_trial.fault import KernelFault, copy_package
from kernel_trial.faults import FAULTS
from kernel_trial.process import Tried, tried
from octavo_conformance.case import Level
from octavo_conformance.suite import cases

DOCUMENT = Path(__file__).parents[3] / "docs" / "kernels-trial.md"

HEAD = """# The kernels on trial

The conformance suite under Triton's interpreter is what proves the kernels where there is no GPU. Here it has to catch
kernels that are wrong on purpose: each fault changes a line or two of a kernel's source, and the case in the last
column, one of the same operation, fails with it and passes without. The table is made by `make kernels-trial`, and
`tests/conformance/test_kernel_trial.py` holds it to what the suite finds.

"""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table. case: the first that catches the fault; "" for none."""

    fault: str
    what: str
    op: str
    file: str
    case: str

    def __str__(self) -> str:
        case = f"`{self.case}`" if self.case else "**none**"
        return f"| `{self.fault}` | {self.what} | `{self.op}` | `{self.file}` | {case} |"


def main(arguments: Sequence[str]) -> int:
    """The exit code: how many faults nothing catches, and how many cases fail where nothing is wrong."""
    parser = argparse.ArgumentParser(description="Try the conformance suite on kernels that are wrong on purpose.")
    parser.add_argument("--only", choices=[fault.name for fault in FAULTS], metavar="NAME")
    parser.add_argument("--output", type=Path, default=DOCUMENT)
    options = parser.parse_args(arguments)
    rows = []
    for fault in FAULTS:
        if options.only in (None, fault.name):
            rows.append(Row(fault.name, fault.what, fault.op, fault.file, first_to_catch(fault)))
            print(rows[-1], flush=True)
    unreliable = failing(None, sorted({row.case for row in rows if row.case}))
    for one in unreliable:
        print(f"{one.case} fails where nothing is wrong: {one.failure}")
    if options.only is None and not unreliable:
        options.output.write_text(document(rows), encoding="utf-8")
    return len(unreliable) + sum(not row.case for row in rows)


def first_to_catch(fault: KernelFault) -> str:
    """The first case of the fault's operation that fails, quick ones before others; "" for none."""
    own = [case for case in cases() if case.level is Level.OPS and case.subject == fault.op]
    own.sort(key=lambda case: (fault.near not in case.id, not case.quick))
    return next((one.case for one in failing(fault, [case.id for case in own], 1)), "")


def failing(fault: KernelFault | None, ids: Sequence[str], most: int | None = None) -> list[Tried]:
    """The cases that fail with a fault, or with the kernels as they are; no more than `most`."""
    found: list[Tried] = []
    with tempfile.TemporaryDirectory(prefix="octavo-trial-") as folder:
        copy_package(Path(folder), fault)
        with closing(tried(Path(folder), ids)) as outcomes:
            for one in outcomes:
                found += [one] if one.failure else []
                if len(found) == most:
                    break
    return found


def document(rows: Iterable[Row]) -> str:
    """The page."""
    rows = tuple(rows)
    lines = [
        f"{len(rows)} faults, {sum(bool(row.case) for row in rows)} caught.",
        "",
        "| fault | what is wrong | operation | kernel | caught by |",
        "|---|---|---|---|---|",
        *map(str, rows),
    ]
    return HEAD + "\n".join(lines) + "\n"


def rows_of(page: str) -> tuple[Row, ...]:
    """The rows of a page."""
    pattern = re.compile(
        r"^\| `([^`]+)` \| (.+) \| `([^`]+)` \| `([^`]+)` \| (?:`([^`]+)`|\*\*none\*\*) \|$", re.MULTILINE
    )
    return tuple(Row(*(part or "" for part in found.groups())) for found in pattern.finditer(page))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
