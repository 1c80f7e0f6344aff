"""docs/kernels.md: what each kernel takes of each architecture at the most, and why where that is more than it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from octavo_torch.kernels.ahead_of_time.budget import Allowance, Budget
from octavo_torch.kernels.ahead_of_time.build import Failure, Outcome
from octavo_torch.kernels.ahead_of_time.figures import MATRIX_UNITS, Figures
from octavo_torch.kernels.ahead_of_time.plan import Entry
from octavo_torch.kernels.target import Target

COMMAND = "python -m octavo_torch.kernels.ahead_of_time --table docs/kernels.md"

HEAD = f"""# The kernels on each architecture

This page is written by

    {COMMAND}

which is part of `make kernels-check`. It compiles every kernel for every architecture, needs no device, and fails where
a launch does not compile, takes more shared memory than there is, spills registers without a reason, takes more than
its budget, no longer uses the matrix unit, or where a row of a vendor's tuning table is of no use.
`backends/torch/budgets` has the figures of each launch; `--write-budgets` renews them and keeps the reasons. `--quick`
takes a share of the launches, which is what `make test` does.

**What this does not prove.** Nothing on this page has run on a card: that the kernels compute the right thing is shown
by conformance under Triton's interpreter, and that they do so on a device, without races, and how fast, only on one.
Registers and shared memory bound how many programs a processor runs at once; they are no measurement of speed. Intel's
GPUs are not here, because Triton's own releases have no code generator for them; `make spirv-check` compiles for them
with Intel's. Architectures without a column take the rows of the tuning tables that name none: sm_89 stands for those
of NVIDIA that have 99 KB of shared memory.

Each kernel is a line for each of its functions, over all launches of it that are compiled: dtypes, formats, head sizes,
decodes and prompts. A cell gives the most vector registers of a thread (AMD: with the accumulation registers), the most
shared memory of a program, and the matrix instructions there are. **In bold** the most bytes of a thread that did not
fit into registers, and in how many launches; each is explained below.
"""


def page(
    outcomes: Sequence[tuple[Entry, Outcome]], targets: Sequence[Target], budgets: Mapping[str, Budget], triton: str
) -> str:
    """The page. outcomes: of all kernels on all targets. budgets: by architecture."""
    archs = [target.arch for target in targets]
    of_line: dict[tuple[str, str], dict[str, list[Outcome]]] = {}
    for entry, outcome in outcomes:
        line = of_line.setdefault((entry.kernel, _function(entry)), {arch: [] for arch in archs})
        line[entry.target.arch].append(outcome)
    lines = [HEAD, f"Triton {triton}: {_counts(outcomes)}", ""]
    lines += [f"| kernel | function | launches | {' | '.join(archs)} |", f"|---|---|---|{'---|' * len(archs)}"]
    lines += [
        f"| {kernel} | {function.strip('_')} | {_launches(of_arch.values())} "
        f"| {' | '.join(_cell(of_arch[arch]) for arch in archs)} |"
        for (kernel, function), of_arch in of_line.items()
    ]
    return "\n".join([*lines, *_limits(targets), *_why(archs, budgets)]) + "\n"


def _function(entry: Entry) -> str:
    """The launched function: an entry is named "specimen: function", and "specimen: function 2" if it has several."""
    return entry.name.rpartition(": ")[2].partition(" ")[0]


def _counts(outcomes: Sequence[tuple[Entry, Outcome]]) -> str:
    spills = sum(isinstance(outcome, Figures) and outcome.spill > 0 for _, outcome in outcomes)
    failures = sum(isinstance(outcome, Failure) for _, outcome in outcomes)
    return f"{len(outcomes)} launches, {spills} with a spill, {failures} that an architecture cannot compile."


def _launches(of_arch: Iterable[Sequence[Outcome]]) -> str:
    """How many there are on an architecture: splits, and with them launches, depend on its processors."""
    counts = {len(outcomes) for outcomes in of_arch}
    return f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(counts.pop())


def _cell(outcomes: Sequence[Outcome]) -> str:
    compiled = [outcome for outcome in outcomes if isinstance(outcome, Figures)]
    if not compiled:
        return "cannot" if outcomes else ""
    parts = [str(max(figures.registers for figures in compiled))]
    if shared := max(figures.shared for figures in compiled):
        parts.append(_bytes(shared))
    parts += [name for name in MATRIX_UNITS if any(figures.matrix == name for figures in compiled)]
    if spills := [figures.spill for figures in compiled if figures.spill]:
        parts.append(f"**{max(spills)} B in {len(spills)}**")
    return ", ".join(parts)


def _bytes(count: int) -> str:
    return f"{count} B" if count < 1024 else f"{count / 1024:.3g} KB"


def _limits(targets: Sequence[Target]) -> Iterator[str]:
    yield ""
    limits = ", ".join(f"{target.arch} {_bytes(target.shared_memory)}" for target in targets)
    yield f"A program may have shared memory of: {limits}."


def _why(archs: Sequence[str], budgets: Mapping[str, Budget]) -> Iterator[str]:
    """Each reason once for an architecture and kernel, with the launches it is of."""
    of_reason: dict[tuple[str, str, str], list[tuple[str, Allowance]]] = {}
    for arch in archs:
        for (kernel, name), allowance in budgets[arch].allowances.items():
            if why := allowance.reason or allowance.unsupported:
                of_reason.setdefault((arch, kernel, why), []).append((name, allowance))
    if of_reason:
        yield from ("", "## Why")
    for (arch, kernel, why), launches in of_reason.items():
        yield from ("", f"{arch}, {kernel}: {why}", "")
        for name, allowance in launches:
            yield f"- {name}: " + (f"{allowance.spill} B" if allowance.spill else "cannot be compiled")
