"""What each kernel may take of each architecture: a TOML file an architecture, kept under version control.

    triton = "3.9.0"

    [rms_norm]
    "bfloat16,hidden=4096,residual=yes: _kernel" = { registers = 40, spill = 0, shared = 64, matrix = "" }

The figures are those of the last `--write-budgets`, so that whatever takes more shows in a difference of these files. A
spill has to give its `reason`. What an architecture cannot compile says why, `{ unsupported = "..." }`, and that holds
both ways: once it compiles, the line is wrong.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo_torch.kernels.ahead_of_time.build import Failure, Outcome
from octavo_torch.kernels.ahead_of_time.plan import Entry


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one launch may take; see `Figures`. reason: for its spill. unsupported: why it does not compile at all."""

    registers: int = 0
    spill: int = 0
    shared: int = 0
    matrix: str = ""
    reason: str = ""
    unsupported: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one architecture. triton: the version whose figures these are. allowances: by (kernel, launch)."""

    triton: str
    allowances: Mapping[tuple[str, str], Allowance]

    @classmethod
    def read(cls, path: Path) -> Budget:
        """An empty one where there is no file."""
        if not path.exists():
            return cls("", {})
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        triton = document.pop("triton")
        return cls(
            triton,
            {
                (kernel, name): Allowance(**figures)
                for kernel, launches in document.items()
                for name, figures in launches.items()
            },
        )

    def write(self, path: Path) -> None:
        lines = [f"triton = {json.dumps(self.triton)}"]
        for kernel in dict.fromkeys(kernel for kernel, _ in self.allowances):
            lines += ["", f"[{kernel}]"]
            lines += [
                f"{json.dumps(name)} = {_inline(allowance)}"
                for (of, name), allowance in self.allowances.items()
                if of == kernel
            ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def judge(entry: Entry, outcome: Outcome, budget: Budget, triton: str) -> Iterator[str]:
    """What is wrong with one launch. With another Triton than the budget's only what is wrong under any."""
    allowance = budget.allowances.get((entry.kernel, entry.name))
    if isinstance(outcome, Failure):
        if allowance is None or not allowance.unsupported:
            yield f"does not compile: {outcome.reason}"
        return
    limit = entry.target.shared_memory
    if outcome.shared > limit:
        yield f"takes {outcome.shared} bytes of shared memory, and there are {limit}."
    if allowance is None:
        yield "has no budget; --write-budgets gives it one."
        allowance = Allowance(outcome.registers, 0, outcome.shared)
    if allowance.unsupported:
        yield f"compiles, and the budget says that it cannot: {allowance.unsupported}"
    elif outcome.spill and not allowance.reason:
        yield f"spills {outcome.spill} bytes a thread, and the budget gives no reason for it."
    elif triton == budget.triton:
        for what in ("registers", "spill", "shared"):
            taken, allowed = getattr(outcome, what), getattr(allowance, what)
            if taken > allowed:
                yield f"takes {taken} of {what}, and its budget is {allowed}."
        if allowance.matrix and outcome.matrix != allowance.matrix:
            yield f"no longer uses the matrix unit's {allowance.matrix}."


def stale(entries: Sequence[Entry], arch: str, budget: Budget, kernels: Sequence[str]) -> Iterator[str]:
    """Lines of these kernels in an architecture's budget that no launch stands behind. entries: all there are."""
    launches = {(entry.kernel, entry.name) for entry in entries if entry.target.arch == arch}
    for kernel, name in budget.allowances:
        if kernel in kernels and (kernel, name) not in launches:
            yield f"{arch}: {kernel}: {name}: has a budget, and there is no such launch."


def renewed(entries: Sequence[tuple[Entry, Outcome]], budget: Budget, triton: str, kernels: Sequence[str]) -> Budget:
    """A budget of what these launches take. Reasons are kept, and so is all of the kernels that were not asked for."""
    allowances = {key: each for key, each in budget.allowances.items() if key[0] not in kernels}
    for entry, outcome in entries:
        before = budget.allowances.get((entry.kernel, entry.name), Allowance())
        if isinstance(outcome, Failure):
            after = Allowance(unsupported=before.unsupported)
        else:
            reason = before.reason if outcome.spill else ""
            after = Allowance(outcome.registers, outcome.spill, outcome.shared, outcome.matrix, reason)
        allowances[entry.kernel, entry.name] = after
    return Budget(triton, allowances)


def _inline(allowance: Allowance) -> str:
    if allowance.unsupported:
        return f"{{ unsupported = {json.dumps(allowance.unsupported)} }}"
    parts = [f"{what} = {getattr(allowance, what)}" for what in ("registers", "spill", "shared")]
    if allowance.matrix:
        parts.append(f"matrix = {json.dumps(allowance.matrix)}")
    if allowance.spill:
        parts.append(f"reason = {json.dumps(allowance.reason)}")
    return f"{{ {', '.join(parts)} }}"
