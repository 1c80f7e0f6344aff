"""Two reports side by side: what got worse, what got better, what else changed."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO

from rich.console import Console, RenderableType

from octavo_conformance.report.document import Claims, Report, Result
from octavo_conformance.verdict import Verdict

LARGEST_GROWTH = 10.0
"""An error figure that grew by more than this factor is listed; less is the noise of another order of summation."""

SMALLEST_GROWN = 1e-3
"""Parts of the tolerance below which no error is worth a line, whatever it was before."""


@dataclass(frozen=True, slots=True)
class Change:
    """One case in both reports."""

    before: Result
    after: Result

    @property
    def case(self) -> str:
        return self.after.case


@dataclass(frozen=True, slots=True)
class Difference:
    """A line of the reports' heads that changed: a version, the device, a claimed capability."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from one report to another.

    regressions: passed before and not now. fixes: passed now and not before. moved: another verdict, passed in neither.
    grown: passed in both, with an error more than LARGEST_GROWTH times what it was. new, gone: cases that one of the
    two does not have, for another version of the suite or another selection. claims: capabilities that changed.
    head: what else the two were made from. seconds: the time of the cases that both have, before and after.
    """

    before: Report
    after: Report
    regressions: tuple[Change, ...]
    fixes: tuple[Change, ...]
    moved: tuple[Change, ...]
    grown: tuple[Change, ...]
    new: tuple[Result, ...]
    gone: tuple[Result, ...]
    claims: tuple[Difference, ...]
    head: tuple[Difference, ...]
    seconds: tuple[float, float]

    @property
    def lost(self) -> tuple[Result, ...]:
        """Cases that passed and were not run now, though the suite has them: a narrower selection proves nothing."""
        if self.before.suite_version != self.after.suite_version:
            return ()
        return tuple(result for result in self.gone if result.verdict is Verdict.PASSED)

    def __rich__(self) -> RenderableType:
        from octavo_conformance.report.terminal import comparison

        return comparison(self)

    def text(self) -> str:
        """The comparison as plain text; a rich console prints it with colours."""
        console = Console(file=StringIO(), width=120, color_system=None, highlight=False)
        with console.capture() as capture:
            console.print(self, soft_wrap=True)
        return capture.get().rstrip()


def compare(before: Report, after: Report) -> Comparison:
    """Compare two reports, of one backend or of two."""
    old = {result.case: result for result in before.results}
    now = {result.case: result for result in after.results}
    both = [Change(old[case], result) for case, result in now.items() if case in old]
    turned = [change for change in both if change.before.verdict is not change.after.verdict]
    return Comparison(
        before=before,
        after=after,
        regressions=tuple(change for change in turned if change.before.verdict is Verdict.PASSED),
        fixes=tuple(change for change in turned if change.after.verdict is Verdict.PASSED),
        moved=tuple(change for change in turned if Verdict.PASSED not in _verdicts(change)),
        grown=tuple(change for change in both if _grew(change)),
        new=tuple(result for case, result in now.items() if case not in old),
        gone=tuple(result for case, result in old.items() if case not in now),
        claims=_claims(before.capabilities, after.capabilities),
        head=_head(before, after),
        seconds=(sum(change.before.seconds for change in both), sum(change.after.seconds for change in both)),
    )


def _verdicts(change: Change) -> tuple[Verdict, Verdict]:
    return change.before.verdict, change.after.verdict


def _grew(change: Change) -> bool:
    """Whether the error of a case that passed in both is another one, and not noise."""
    before, after = change.before, change.after
    if _verdicts(change) != (Verdict.PASSED, Verdict.PASSED):
        return False
    if before.error is None or after.error is None or after.tolerance is None:
        return False
    return after.error > max(LARGEST_GROWTH * before.error, SMALLEST_GROWN * after.tolerance)


def _claims(before: Claims | None, after: Claims | None) -> tuple[Difference, ...]:
    return _differences(
        [(name, _claim(before, name), _claim(after, name)) for name in Claims.__struct_fields__],
    )


def _claim(claims: Claims | None, name: str) -> str:
    if claims is None:
        return "no device"
    value = getattr(claims, name)
    if name == "head_sizes" and value is None:
        return "any"
    if name == "default_dtype" and value is None:
        return "the checkpoint's"
    return claim_text(value)


def claim_text(value: object) -> str:
    """A claimed capability in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(claim_text(one) for one in value) or "none"
    return str(getattr(value, "value", value))


def _head(before: Report, after: Report) -> tuple[Difference, ...]:
    one, other = _lines(before), _lines(after)
    return _differences([(name, one.get(name, ""), other.get(name, "")) for name in dict.fromkeys((*one, *other))])


def _lines(report: Report) -> dict[str, str]:
    """The head of a report that explains why results differ."""
    backend, device = report.backend, report.device
    lines = {
        "suite": report.suite_version,
        "backend": f"{backend.name} {backend.version}".strip(),
        "kernel": backend.kernel,
        "options": ", ".join(f"{name}={value}" for name, value in sorted(backend.options.items())),
        "device": "" if device is None else f"{device.name} ({device.arch})",
        "driver": "" if device is None else device.driver,
        "processor": report.host.processor,
        "python": report.host.python,
        "quick": claim_text(report.selection.quick),
        "levels": ", ".join(level.value for level in report.selection.levels),
        "pattern": report.selection.pattern,
        "overrides": "; ".join(f"{one.op} {one.dtype.value} {one.nmse:g}" for one in report.overrides),
    }
    return {**lines, **report.host.packages}


def _differences(rows: list[tuple[str, str, str]]) -> tuple[Difference, ...]:
    return tuple(Difference(*row) for row in rows if row[1] != row[2])
