"""docs/kernels.md: what each kernel takes of each architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo_torch.kernels.ahead_of_time.budget import Budget
from octavo_torch.kernels.ahead_of_time.build import Failure, Outcome
from octavo_torch.kernels.ahead_of_time.plan import Entry
from octavo_torch.kernels.target import Target

HEAD = """# The kernels on each architecture

Compiled ahead of time by `make kernels-check`, which writes this page; no device is needed, and nothing on it is a
measurement of speed. A cell gives the vector registers of a thread, the shared memory of a program in KB, and the
matrix instructions where there are any. **In bold** the bytes of a thread that did not fit into registers; the reasons
stand below. `backends/torch/budgets` holds all figures, and a kernel that comes to take more fails the check.
"""


def page(
    outcomes: Sequence[tuple[Entry, Outcome]], targets: Sequence[Target], budgets: Mapping[str, Budget], triton: str
) -> str:
    """The page. outcomes: of all kernels on all targets. budgets: by architecture."""
    cells = {(entry.kernel, entry.name, entry.target.arch): outcome for entry, outcome in outcomes}
    archs = [target.arch for target in targets]
    lines = [HEAD, f"Triton {triton}. {_counts(outcomes)}"]
    for kernel in dict.fromkeys(entry.kernel for entry, _ in outcomes):
        names = dict.fromkeys(entry.name for entry, _ in outcomes if entry.kernel == kernel)
        lines += ["", f"## {kernel}", "", f"| launch | {' | '.join(archs)} |", f"|---|{'---|' * len(archs)}"]
        for name in names:
            lines.append(f"| {name} | {' | '.join(_cell(cells.get((kernel, name, arch))) for arch in archs)} |")
    reasons = [
        f"- {arch}, {kernel}, {name}: {allowance.reason or allowance.unsupported}"
        for arch in archs
        for (kernel, name), allowance in budgets[arch].allowances.items()
        if allowance.reason or allowance.unsupported
    ]
    if reasons:
        lines += ["", "## Why", "", *reasons]
    return "\n".join(lines) + "\n"


def _counts(outcomes: Sequence[tuple[Entry, Outcome]]) -> str:
    spills = sum(not isinstance(outcome, Failure) and outcome.spill > 0 for _, outcome in outcomes)
    failures = sum(isinstance(outcome, Failure) for _, outcome in outcomes)
    return f"{len(outcomes)} launches, {spills} with a spill, {failures} that an architecture cannot compile."


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if isinstance(outcome, Failure):
        return "cannot"
    parts = [str(outcome.registers)]
    if outcome.shared:
        parts.append(f"{outcome.shared} B" if outcome.shared < 1024 else f"{outcome.shared / 1024:.3g} KB")
    if outcome.matrix:
        parts.append(outcome.matrix)
    if outcome.spill:
        parts.append(f"**{outcome.spill} spilled**")
    return ", ".join(parts)
