"""What each step may take of a chip: a TOML file a chip, kept under version control.

    compiler = "jax 0.10.2, libtpu 0.0.42.1"

    [temporary_mib]
    "1B, 1 chip: decodes, 64 tokens" = 39

    [too_large]
    "8B, 1 chip: decodes, 64 tokens" = "8B parameters of 16 bits are all of the chip's memory."

temporary_mib: megabytes beside weights, KV cache and outputs, a little above what the last `--write-budgets` measured.
too_large: why a step does not fit at all. That holds both ways: once it fits, the line is wrong.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from .build import Compiled, Failure, Outcome, TooLarge
from .cache import compiler
from .figures import Expected, Kernels
from .steps import Case

MIB = 1 << 20

_SLACK = 1.05
"""What another machine's compiler may take more: it chooses between programs of nearly the same cost."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one chip, by the names of its cases. compiler: whose figures these are."""

    compiler: str
    temporary_mib: Mapping[str, int]
    too_large: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Budget:
        """An empty one where there is no file."""
        if not path.exists():
            return cls("", {}, {})
        return cls(**tomllib.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        lines = [f"compiler = {json.dumps(self.compiler)}"]
        for table in ("temporary_mib", "too_large"):
            entries = getattr(self, table).items()
            lines += ["", f"[{table}]", *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in entries)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def judge(case: Case, outcome: Outcome, budget: Budget) -> Iterator[str]:
    """What is wrong with one step. Under another compiler than the budget's, its temporary bytes are not judged."""
    if isinstance(outcome, Failure):
        yield f"does not compile: {outcome.reason}"
    elif isinstance(outcome, TooLarge):
        if case.name not in budget.too_large:
            yield f"does not fit: {outcome.sentence}"
    else:
        yield from _differences(outcome)
        yield from _memory(case, outcome, budget)


def _differences(outcome: Compiled) -> Iterator[str]:
    for field in fields(Expected):
        found, due = getattr(outcome.figures, field.name), getattr(outcome.expected, field.name)
        if found != due:
            yield f"{field.name.replace('_', ' ')}: {_said(found)}, and should be {_said(due)}."


def _said(figure: int | Kernels | tuple[str, ...]) -> str:
    if isinstance(figure, int):
        return f"{figure:,}"
    return ", ".join(each if isinstance(each, str) else f"{each[1]} {each[0]}" for each in figure) or "none"


def _memory(case: Case, outcome: Compiled, budget: Budget) -> Iterator[str]:
    figures, chip = outcome.figures, case.chip
    if figures.hbm > chip.hbm:
        yield f"takes {figures.hbm:,} bytes of a chip's memory, and there are {chip.hbm:,}."
    if case.name in budget.too_large:
        yield f"fits, and the budget says that it does not: {budget.too_large[case.name]}"
    elif case.name not in budget.temporary_mib:
        yield "has no budget; --write-budgets gives it one."
    elif budget.compiler == compiler() and figures.temporary > (allowed := budget.temporary_mib[case.name] * MIB):
        yield f"takes {figures.temporary:,} temporary bytes, and its budget is {allowed:,}."


def stale(names: Sequence[str], budget: Budget) -> Iterator[str]:
    """Lines of a chip's budget that no step stands behind. names: of all cases there are."""
    for name in (*budget.temporary_mib, *budget.too_large):
        if name not in names:
            yield f"{name}: has a budget, and there is no such step."


def renewed(outcomes: Sequence[tuple[Case, Outcome]], budget: Budget) -> Budget:
    """With what these steps take. Reasons are kept, and so is what was not asked for."""
    temporary, too_large = dict(budget.temporary_mib), dict(budget.too_large)
    for case, outcome in outcomes:
        temporary.pop(case.name, None)
        if isinstance(outcome, Compiled):
            temporary[case.name] = -(-int(outcome.figures.temporary * _SLACK) // MIB)
            too_large.pop(case.name, None)
    return replace(budget, compiler=compiler(), temporary_mib=temporary, too_large=too_large)
