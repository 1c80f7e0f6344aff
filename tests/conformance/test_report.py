"""The report: its file keeps everything, refuses what is not whole, and adds up; two of them compare."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest

from octavo.backend import DeviceConfig, DType
from octavo.backend.discovery import open_device
from octavo_conformance import SUITE_VERSION, must_pass, suite
from octavo_conformance.case import Case, Level
from octavo_conformance.expectations import Expectations, ExpectedFailure
from octavo_conformance.report import ReportError, compare, count, make_report, read_report, write_report
from octavo_conformance.report.digest import seal
from octavo_conformance.report.document import NonFinite, Report, Result, Selection
from octavo_conformance.report.files import listed_cases
from octavo_conformance.report.schema import published, schema
from octavo_conformance.report.score import by_level, by_spot, spot, worst
from octavo_conformance.running.execute import execute
from octavo_conformance.running.wire import Assignment, Opened
from octavo_conformance.tolerances import Override, Tolerances
from octavo_conformance.verdict import Outcome, Verdict
from octavo_conformance.workbench import CaseFailure, Workbench

Build = Callable[..., Report]
Listed = Callable[[str, Selection], Sequence[str]]


def _results(report: Report, *results: Result) -> Report:
    return msgspec.structs.replace(report, results=results)


# ------------------------------------------------------------------------------------------------------- the file


def test_a_report_comes_back_as_it_was_written(build: Build, failure: Result, listed: Listed, tmp_path: Path) -> None:
    infinite = msgspec.structs.replace(failure, nmse=NonFinite.INFINITY)
    report = build(infinite, options={"threads": "4"})
    write_report(report, tmp_path / "report.json")
    again = read_report(tmp_path / "report.json", listed)
    assert again == seal(report)
    assert next(result for result in again.results if result.case == failure.case).error == math.inf


def test_each_result_is_one_short_line_so_that_a_changed_case_is_one_line_of_a_diff(
    build: Build, failure: Result, tmp_path: Path
) -> None:
    write_report(build(), tmp_path / "a.json")
    write_report(build(failure), tmp_path / "b.json")
    a, b = ((tmp_path / name).read_text().splitlines() for name in ("a.json", "b.json"))
    changed = [line for line, other in zip(a, b, strict=True) if line != other]
    assert len(changed) == 2  # the case, and the digest of the results
    assert max(len(line) for line in a if line.startswith('{"case"')) < 180
    assert len(next(line for line in a if "ops/linear/float32/dense,tokens=33" in line)) < 150


def test_the_published_schema_is_the_one_of_the_structures_and_takes_a_report(
    build: Build, failure: Result, tmp_path: Path
) -> None:
    current = json.loads(json.dumps(schema()))
    assert published() == current, "python -m octavo_conformance.report.schema prints the one to be published"
    jsonschema.Draft202012Validator.check_schema(published())
    validator = jsonschema.Draft202012Validator(published())
    write_report(build(msgspec.structs.replace(failure, nmse=NonFinite.INFINITY)), tmp_path / "report.json")
    document = json.loads((tmp_path / "report.json").read_text())
    validator.validate(document)
    for broken in (
        {**document, "schema": 2},
        {**document, "note": "unknown"},
        {**document, "results": [{"case": "ops/linear/x", "verdict": "fine"}]},
        {name: value for name, value in document.items() if name != "host"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(broken)


def test_writing_replaces_a_report_whole_and_says_where_it_cannot(build: Build, listed: Listed, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "cpu.json"
    write_report(build(), path)
    write_report(build(backend="cuda"), path)
    assert read_report(path, listed).backend.name == "cuda"
    assert [entry.name for entry in path.parent.iterdir()] == ["cpu.json"]
    with pytest.raises(ReportError, match="cannot be written"):
        write_report(build(), tmp_path)


# -------------------------------------------------------------------------------------------------------- refusals


def _sealed_by_hand(report: Report, path: Path) -> Path:
    """What somebody does who knows the format: digests that fit."""
    write_report(report, path)
    return path


def test_a_case_removed_added_or_given_twice_is_refused_also_with_new_digests(
    build: Build, failure: Result, listed: Listed, tmp_path: Path
) -> None:
    whole = build(failure).results
    kept = [result for result in whole if result.case != failure.case]
    path = tmp_path / "report.json"
    with pytest.raises(ReportError, match=r"lacks case 'ops/paged_attention/float32/prefill.*asks for 15 cases"):
        read_report(_sealed_by_hand(_results(build(), *kept), path), listed)
    invented = Result("ops/linear/float32/easy", Verdict.PASSED)
    with pytest.raises(ReportError, match=r"'ops/linear/float32/easy', which suite 0\.9 does not have"):
        read_report(_sealed_by_hand(_results(build(), *whole, invented), path), listed)
    with pytest.raises(ReportError, match="more than one result of case 'contract/discovery/found_by_name'"):
        read_report(_sealed_by_hand(_results(build(), *whole, whole[0]), path), listed)
    with pytest.raises(ReportError, match="order of the suite"):
        read_report(_sealed_by_hand(_results(build(), *reversed(whole)), path), listed)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"verdict":"failed"', '"verdict":"unsupported"'),
        ('"nmse":0.0312', '"nmse":3.12e-11'),
        ('"name":"cpu"', '"name":"cuda"'),
        ('"quick":false', '"quick":true'),
    ],
)
def test_an_edit_is_refused(
    build: Build, failure: Result, listed: Listed, tmp_path: Path, before: str, after: str
) -> None:
    path = tmp_path / "report.json"
    write_report(build(failure), path)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ReportError, match="changed after it was written"):
        read_report(path, listed)


def test_a_line_deleted_from_the_file_is_refused(build: Build, failure: Result, listed: Listed, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(build(failure), path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if failure.case not in line))
    with pytest.raises(ReportError, match="changed after it was written"):
        read_report(path, listed)


def test_a_file_made_pretty_is_the_same_report(build: Build, listed: Listed, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(build(), path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True))
    assert read_report(path, listed) == seal(build())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "is no conformance report"),
        (b"{}", "is no conformance report"),
        (b"[" * 100_000, "is no"),
        (b'{"schema": 0}', "schema version 0.*Run the suite again"),
        (b'{"schema": 2}', "schema version 2.*Upgrade octavo-conformance"),
        (b'{"schema": 1}', "is no report of schema version 1.*suite_version"),
    ],
)
def test_what_is_no_report_is_refused_with_a_sentence(
    listed: Listed, tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ReportError, match=sentence):
        read_report(path, listed)


def test_a_field_that_no_digest_covers_is_refused(build: Build, listed: Listed, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(build(), path)
    path.write_text(path.read_text().replace('"schema":1', '"certified":true,"schema":1'))
    with pytest.raises(ReportError, match="certified"):
        read_report(path, listed)


def test_a_verdict_that_its_own_figures_contradict_is_refused(
    build: Build, failure: Result, listed: Listed, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    for nmse in (0.0312, NonFinite.INFINITY, NonFinite.NOT_A_NUMBER):
        lucky = msgspec.structs.replace(failure, verdict=Verdict.PASSED, reason="", nmse=nmse)
        with pytest.raises(ReportError, match="passed with an error of"):
            read_report(_sealed_by_hand(build(lucky), path), listed)
    silent = Result(failure.case, Verdict.UNSUPPORTED)
    with pytest.raises(ReportError, match="unsupported without a reason"):
        read_report(_sealed_by_hand(build(silent), path), listed)


def test_a_date_elsewhere_than_in_utc_is_refused(build: Build, listed: Listed, tmp_path: Path) -> None:
    east = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23)))  # which UTC has no name for
    with pytest.raises(ReportError, match="not in UTC"):
        read_report(_sealed_by_hand(build(date=east), tmp_path / "report.json"), listed)


def test_a_missing_file_and_an_unknown_suite_are_refused(build: Build, listed: Listed, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot be read"):
        read_report(tmp_path / "none.json")
    path = _sealed_by_hand(msgspec.structs.replace(build(), suite_version="7.3"), tmp_path / "report.json")
    with pytest.raises(ReportError, match=r"cannot be checked. There are no must-pass lists of suite version '7.3'"):
        read_report(path, listed)
    with pytest.raises(ReportError, match=r"'7\.3'"):  # so say the real lists
        read_report(path)


def test_a_report_is_held_to_the_lists_of_this_package() -> None:
    selection = Selection(levels=(Level.CONTRACT, Level.OPS), pattern="*/l*", quick=True)
    right = must_pass.ids((Level.CONTRACT, Level.OPS), "*/l*", True)
    assert right
    assert list(listed_cases(SUITE_VERSION, selection)) == right


# ------------------------------------------------------------------------------------------------------ from a run


def _bench() -> tuple[Workbench, Opened, Assignment]:
    config = DeviceConfig(backend="reference")
    opened = open_device(config)
    bench = Workbench(opened.device, config, Tolerances())
    return bench, Opened(opened.device.info, opened.package, opened.version, 1), Assignment("reference", "auto", {})


def _rms_norm(bench: Workbench, eps: float) -> None:
    x = bench.rng.standard_normal((3, 8)).astype(np.float32)
    device = bench.device
    normed, _ = device.ops.rms_norm(device.upload(x), device.upload(np.ones(8, np.float32)), eps)
    got = device.download(normed)
    right = x / np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True) + 1e-6)
    bench.check("rms_norm", DType.FLOAT32, got, right, "x [3, 8]")


def test_a_report_of_real_outcomes_holds_their_figures_and_says_where_they_come_from(tmp_path: Path) -> None:
    cases = [
        Case("ops/rms_norm/float32/right", lambda bench: _rms_norm(bench, 1e-6), dtype=DType.FLOAT32),
        Case("ops/rms_norm/float32/wrong", lambda bench: _rms_norm(bench, 0.5), dtype=DType.FLOAT32),
    ]
    bench, opened, assignment = _bench()
    override = Override("rms_norm", DType.FLOAT32, 1e-10, "an estimate of the root")
    expectations = Expectations((ExpectedFailure("ops/rms_norm/*/wr*", "epsilon is fixed: issue 3"),), (override,))
    outcomes = [expectations.judge(execute(case, bench)) for case in cases]
    report = make_report(
        opened=opened,
        assignment=assignment,
        selection=Selection(levels=(Level.OPS,)),
        expectations=expectations,
        outcomes=outcomes,
    )
    write_report(report, tmp_path / "report.json")
    report = read_report(tmp_path / "report.json", lambda *_: [case.id for case in cases])
    right, wrong = report.results
    assert right.verdict is Verdict.PASSED
    assert right.error is not None
    assert 0.0 < right.error <= 1e-11
    assert wrong.verdict is Verdict.EXPECTED_FAILURE
    assert wrong.error is not None
    assert wrong.error > 1e-3
    assert "issue 3" in wrong.reason
    assert "NMSE" in wrong.reason
    assert report.backend.kernel == bench.device.info.kernel != ""
    assert report.backend.package == "octavo-core"
    assert report.host.packages["numpy"] == np.__version__
    assert report.capabilities is not None
    assert report.capabilities.dtypes == bench.capabilities.dtypes
    assert report.overrides[0].table == Tolerances().of("rms_norm", DType.FLOAT32)
    assert report.suite_version == SUITE_VERSION
    assert report.date.tzinfo is not None


def test_figures_that_json_lacks_survive(listed: Listed, build: Build, tmp_path: Path) -> None:
    bench, opened, assignment = _bench()

    def measured(bench: Workbench) -> None:
        bench.figures.update(seconds=math.nan, bytes_per_second=math.inf, of_copy_bandwidth=0.123456)
        bench.measure("model", DType.FLOAT32, np.array([math.nan]), np.array([1.0]), "one logit")

    outcome = execute(Case("performance/copy_blocks/odd", measured), bench)
    report = make_report(
        opened=opened, assignment=assignment, selection=Selection(), expectations=Expectations(), outcomes=[outcome]
    )
    write_report(report, tmp_path / "report.json")
    (result,) = read_report(tmp_path / "report.json", lambda *_: [outcome.case]).results
    assert result.error == math.inf
    assert result.figures == {"seconds": "nan", "bytes_per_second": "inf", "of_copy_bandwidth": 0.123}


def test_a_run_without_a_device_makes_a_report_too(tmp_path: Path) -> None:
    report = make_report(
        opened=Opened(unavailable="There is no such accelerator here."),
        assignment=Assignment("cuda", "paged", {"graph": "off"}),
        selection=Selection(),
        expectations=Expectations(),
        outcomes=[Outcome("ops/linear/float32/x", Verdict.UNAVAILABLE, "There is no such accelerator here.")],
        date=datetime(2026, 11, 21, 6, 14, 15, 999, tzinfo=UTC),
    )
    write_report(report, tmp_path / "report.json")
    again = read_report(tmp_path / "report.json", lambda *_: ["ops/linear/float32/x"])
    assert (again.device, again.capabilities) == (None, None)
    assert again.date == datetime(2026, 11, 21, 6, 14, 15, tzinfo=UTC)
    assert again.backend.requested_kernel == "paged"


def test_a_report_does_not_tell_whose_machine_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    _, opened, _ = _bench()
    assert opened.info is not None
    info = replace(opened.info, notes=("Programs are kept in /home/ada/.cache/octavo.", "/home/adam is another."))
    report = make_report(
        opened=Opened(info, opened.package, opened.version, 1),
        assignment=Assignment("reference", "auto", {"cache": "/home/ada/cache", "folder": "/home/ada"}),
        selection=Selection(),
        expectations=Expectations(),
        outcomes=[],
    )
    assert report.device is not None
    assert report.device.notes == ("Programs are kept in ~/.cache/octavo.", "/home/adam is another.")
    assert report.backend.options == {"cache": "~/cache", "folder": "~"}


# -------------------------------------------------------------------------------------------------------- the score


def test_what_is_not_claimed_stays_in_the_denominator_and_what_is_absent_does_not() -> None:
    def of(*verdicts: Verdict) -> list[Result]:
        return [Result(f"ops/linear/float32/{index}", verdict, "why") for index, verdict in enumerate(verdicts)]

    counts = count(of(*[Verdict.PASSED] * 3, Verdict.UNSUPPORTED, Verdict.EXPECTED_FAILURE, Verdict.UNAVAILABLE))
    assert (counts.total, counts.judged, counts.score, counts.ok) == (6, 5, 0.6, True)
    nothing = count(of(*[Verdict.UNSUPPORTED] * 4))
    assert (nothing.score, nothing.ok) == (0.0, False)
    absent = count(of(*[Verdict.UNAVAILABLE] * 4))
    assert (absent.score, absent.judged, absent.ok) == (0.0, 0, False)
    assert not count(of(Verdict.PASSED, Verdict.FAILED)).ok


def test_results_are_counted_by_level_and_by_operation_and_dtype(build: Build, failure: Result) -> None:
    report = build(failure)
    levels = by_level(report)
    assert list(levels) == list(Level)
    assert (levels[Level.OPS].passed, levels[Level.OPS].failed) == (8, 1)
    grouped = by_spot(report)
    assert sum(len(results) for results in grouped.values()) == len(report.results)
    attention = grouped[spot(failure.case)]
    assert [result.verdict for result in attention] == [Verdict.PASSED, Verdict.FAILED]
    assert worst(attention) == failure


def test_every_case_of_the_suite_has_its_dtype_where_the_matrix_looks_for_it() -> None:
    wrong = [case.id for case in suite.cases() if spot(case.id).dtype is not case.dtype]
    assert wrong == []


# ------------------------------------------------------------------------------------------------------ comparison


def test_a_comparison_tells_regressions_from_fixes_and_other_changes(build: Build, failure: Result) -> None:
    refused = Result("ops/linear/float32/bits=4,group=32", Verdict.UNSUPPORTED, "4 bits are not claimed")
    broken = msgspec.structs.replace(refused, verdict=Verdict.FAILED, reason="NMSE 1, 1e-11 is allowed")
    found = compare(build(refused), build(failure, broken))
    assert [change.case for change in found.regressions] == [failure.case]
    assert [change.case for change in found.moved] == [refused.case]
    assert found.fixes == ()
    back = compare(build(failure, broken), build(refused))
    assert [change.case for change in back.fixes] == [failure.case]
    assert back.regressions == ()
    text = found.text()
    assert f"{failure.case}\n    passed -> failed: {failure.reason}" in text
    assert "Regressions (1)" in text
    assert "13 of 15 passed" in text


def test_a_claim_that_was_dropped_shows_with_the_cases_it_cost(build: Build) -> None:
    lost = [
        Result(case.case, Verdict.UNSUPPORTED, "compute dtype bfloat16 is not claimed")
        for case in build().results
        if "bfloat16" in case.case
    ]
    before, after = build(), build(*lost)
    assert after.capabilities is not None
    after = msgspec.structs.replace(
        after, capabilities=msgspec.structs.replace(after.capabilities, dtypes=(DType.FLOAT32,))
    )
    found = compare(before, after)
    assert [(one.name, one.before, one.after) for one in found.claims] == [("dtypes", "float32, bfloat16", "float32")]
    assert len(found.regressions) == len(lost) > 0


def test_an_error_that_grew_tenfold_is_listed_and_noise_is_not(build: Build) -> None:
    case = next(result for result in build().results if result.case == "step/llama/float32/prefill")

    def error(nmse: float) -> Report:
        return build(msgspec.structs.replace(case, nmse=nmse))

    assert [change.case for change in compare(error(2e-14), error(3e-13)).grown] == [case.case]
    assert compare(error(2e-14), error(1.9e-13)).grown == ()
    assert compare(error(0.0), error(1e-15)).grown == ()  # far within the tolerance
    assert [change.case for change in compare(error(0.0), error(1e-12)).grown] == [case.case]


def test_cases_of_another_version_are_new_or_gone_and_no_regressions(build: Build) -> None:
    before, after = build(), build(backend="cuda", device="Another")
    before = _results(before, *before.results[1:])
    found = compare(before, after)
    assert [result.case for result in found.new] == ["contract/discovery/found_by_name"]
    assert [result.case for result in compare(after, before).gone] == ["contract/discovery/found_by_name"]
    assert found.regressions == ()
    assert {one.name for one in found.head} == {"backend", "device"}
    assert found.seconds[0] == found.seconds[1]


def test_text_of_a_report_gives_the_terminal_no_orders(build: Build, failure: Result) -> None:
    hostile = msgspec.structs.replace(failure, reason="\x1b]0;owned\x07 [bold]not markup[/bold] \x1b[2J")
    text = compare(build(), build(hostile)).text()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]not markup[/bold]" in text


def test_a_failing_case_keeps_the_sentence_of_its_failure() -> None:
    bench, _, _ = _bench()

    def wrong(bench: Workbench) -> None:
        raise CaseFailure("top_k: ties go to the lower index (x [1, 8]).")

    assert execute(Case("ops/top_k/float32/ties", wrong), bench).reason.startswith("top_k: ties")
