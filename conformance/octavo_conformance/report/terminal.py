"""A comparison of two reports on the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from octavo_conformance.report.compare import Change, Comparison, Difference
from octavo_conformance.report.document import Report, Result
from octavo_conformance.report.score import count

_MOST_NAMES = 50  # of a list that is of little interest: new and gone cases


def comparison(found: Comparison) -> RenderableType:
    """What changed, the worst first. Text from reports is data: no markup and no control character of it has effect."""
    sections = (
        _section("Regressions", "bold red", found.regressions, _turned(found.regressions)),
        _section("Errors that grew", "yellow", found.grown, [Entry([_grown(one)]) for one in found.grown]),
        _section("Other verdicts that changed", "yellow", found.moved, _turned(found.moved)),
        _section("Fixed", "green", found.fixes, [Entry([_fixed(one)]) for one in found.fixes]),
        _section("Claims that changed", "yellow", found.claims, _differences(found.claims)),
        _section("Made differently", "default", found.head, _differences(found.head)),
        _section("New cases", "default", found.new, _named(found.new)),
        _section("Gone cases", "default", found.gone, _named(found.gone)),
    )
    return Group(
        _report("before", found.before),
        _report("after", found.after),
        *(section for section in sections if section is not None),
        _end(found),
    )


def plain(text: str) -> str:
    """A text without control characters other than the end of a line: none reaches the terminal as a command."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


@dataclass(frozen=True, slots=True)
class Entry:
    """One or several lines of a section, and what is to be said of them below."""

    lines: Sequence[str]
    below: str = ""


def _report(label: str, report: Report) -> Text:
    counts, backend = count(report.results), report.backend
    device = "no device" if report.device is None else report.device.name
    words = " ".join(word for word in (backend.name, backend.version, backend.kernel, f"on {device}") if word)
    return Text(f"{label:7}{plain(words)}, {report.date:%Y-%m-%d}: {counts.passed} of {counts.judged} passed")


def _section(title: str, style: str, counted: Sequence[object], entries: Iterable[Entry]) -> Text | None:
    if not counted:
        return None
    text = Text(f"\n{title} ({len(counted)})", style=style)
    for entry in entries:
        shown = plain("\n".join(entry.lines)).replace("\n", "\n  ")
        below = plain(f"\n{entry.below}").replace("\n", "\n    ") if entry.below else ""
        text.append(f"\n  {shown}{below}", style="default")
    return text


def _turned(changes: Iterable[Change]) -> list[Entry]:
    """The cases that changed for one reason, and then that reason: a claim that was dropped is said once."""
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for change in changes:
        turn = f"{change.before.verdict.value} -> {change.after.verdict.value}"
        grouped[f"{turn}: {change.after.reason}"].append(change.case)
    return [Entry(cases, reason) for reason, cases in grouped.items()]


def _grown(change: Change) -> str:
    before, after = change.before.error or 0.0, change.after.error or 0.0
    times = f", {after / before:.0f} times as much" if before else ""
    return f"{change.case}: NMSE {before:.3g} -> {after:.3g}{times} ({change.after.tolerance:.3g} is allowed)"


def _differences(found: Iterable[Difference]) -> list[Entry]:
    return [Entry([f"{one.name}: {one.before or 'none'} -> {one.after or 'none'}"]) for one in found]


def _fixed(change: Change) -> str:
    return f"{change.case}: was {change.before.verdict.value}"


def _named(results: Sequence[Result]) -> list[Entry]:
    more = len(results) - _MOST_NAMES
    lines = [f"{result.case}: {result.verdict.value}" for result in results[:_MOST_NAMES]]
    return [Entry(lines, f"and {more} more" if more > 0 else "")]


def _end(found: Comparison) -> Text:
    before, after = found.seconds
    if found.regressions:
        verdict = Text(f"Passed before and not after: {len(found.regressions)}.", style="bold red")
    elif found.lost:
        verdict = Text(f"Passed before and not run now: {len(found.lost)}.", style="bold red")
    else:
        verdict = Text("No case that passed stopped passing.", style="green")
    took = f" The cases that both have took {before:.1f} s before and {after:.1f} s after."
    return Text("\n").append(verdict).append(took)
