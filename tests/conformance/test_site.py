"""The pages, in a real browser without a window: on a phone and on a desk, with failures and with hostile text."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo.backend import DType
from octavo_conformance.report import ReportError
from octavo_conformance.report.document import (
    ExpectedFailureRecord,
    NonFinite,
    OverrideRecord,
    Report,
    Result,
    Selection,
)
from octavo_conformance.site import render
from octavo_conformance.site.names import labels, pages
from octavo_conformance.site.text import error, percent, seconds, tolerance
from octavo_conformance.verdict import Verdict

Build = Callable[..., Report]

PHONE, DESK = (360, 740), (1280, 800)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\"'></td>{{ 7 * 7 }}"


@pytest.fixture(scope="module")  # not longer: an event loop runs in this thread meanwhile, and others want their own
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"there is no browser here: none of {', '.join(BROWSERS)}")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visitor:
    """A page in the browser, and everything that it complained about or asked for from elsewhere."""

    def __init__(self, browser: Any, size: tuple[int, int]) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> Any:
        self.page.goto(path.as_uri())
        return self.page

    def widths(self) -> tuple[int, int]:
        """What the page needs, and what there is."""
        needed, there = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        return needed, there


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    visitor = Visitor(browser, getattr(request, "param", DESK))
    yield visitor
    visitor.context.close()


def _reports(build: Build, failure: Result) -> list[Report]:
    """Three backends: one that passes, one that claims less, one that fails and needs overrides."""
    unclaimed = [
        Result(result.case, Verdict.UNSUPPORTED, "compute dtype bfloat16 is not claimed (claimed: float32)")
        for result in build().results
        if "bfloat16" in result.case
    ]
    expected = Result("engine/prefix_cache/partial_block", Verdict.EXPECTED_FAILURE, "issue 12 | it raised", seconds=1)
    override = OverrideRecord("linear", DType.FLOAT32, 1e-10, 1e-11, "the matrix unit rounds its inputs to TF32")
    announced = ExpectedFailureRecord("engine/prefix_cache/*", "partial blocks are not shared yet: issue 12")
    return [
        build(),
        build(*unclaimed, backend="small"),
        build(failure, expected, backend="cuda", overrides=[override], expected_failures=[announced]),
    ]


# -------------------------------------------------------------------------------------------------- in the browser


@pytest.mark.parametrize("visit", [PHONE, DESK], ids=["phone", "desk"], indirect=True)
def test_no_page_scrolls_sideways_loads_anything_or_complains(
    visit: Visitor, build: Build, failure: Result, tmp_path: Path
) -> None:
    files = render(_reports(build, failure), tmp_path)
    for file in files:
        page = visit.open(file)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        needed, there = visit.widths()
        assert needed <= there, f"{file.name} is {needed} wide where {there} fit"
    assert visit.complaints == []
    assert visit.requests == [file.as_uri() for file in files]


@pytest.mark.parametrize("visit", [PHONE, DESK], ids=["phone", "desk"], indirect=True)
def test_the_cell_of_a_failing_operation_leads_to_the_case_and_its_error(
    visit: Visitor, build: Build, failure: Result, tmp_path: Path
) -> None:
    index = render(_reports(build, failure), tmp_path)[0]
    page = visit.open(index)
    cell = page.locator("section#ops td.failed")
    assert cell.count() == 1
    cell.scroll_into_view_if_needed()
    assert cell.is_visible()
    text = cell.inner_text()
    assert "✗ 1 of 2 failed" in text  # in words, not by colour
    assert "3.1e-2 > 1e-10" in text
    operation = page.locator("section#ops tbody th", has_text="paged_attention")
    assert page.evaluate("([a, b]) => a.parentElement === b.parentElement", [
        cell.element_handle(), operation.element_handle(),
    ])  # fmt: skip
    cell.locator("a").click()
    assert page.url.startswith((tmp_path / "cuda.html").as_uri())
    case = page.locator(":target")
    assert case.is_visible()  # its details are open
    box = case.bounding_box()
    assert 0 <= box["y"] < page.viewport_size["height"]
    shown = case.inner_text()
    assert failure.case in shown
    assert "NMSE 3.1e-2 > 1e-10" in shown
    assert failure.reason in shown
    assert f"octavo conformance run --backend cuda --case {failure.case}" in shown


def test_failures_come_first_and_open_and_what_passed_is_folded(
    visit: Visitor, build: Build, failure: Result, tmp_path: Path
) -> None:
    page = visit.open(render(_reports(build, failure), tmp_path)[3])
    assert page.locator("#failures").bounding_box()["y"] < page.locator("section#contract").bounding_box()["y"]
    attention = page.locator("[id='ops/paged_attention/float32']")
    assert attention.get_attribute("open") is not None
    passed = attention.get_by_text("decode,heads=9x3x64,block=16")
    assert not passed.is_visible()
    attention.locator("details summary").click()
    assert passed.is_visible()
    linear = page.locator("[id='ops/linear/float32']")
    assert linear.get_attribute("open") is None
    linear.locator("summary").click()
    assert "2.4e-14 ≤ 1e-11" in linear.locator("tbody tr").first.inner_text()
    assert "12 ms" in linear.locator("tbody tr").first.inner_text()


@pytest.mark.parametrize("visit", [PHONE], ids=["phone"], indirect=True)
def test_on_a_phone_the_operations_stay_in_sight_while_the_matrix_scrolls(
    visit: Visitor, build: Build, failure: Result, tmp_path: Path
) -> None:
    page = visit.open(render(_reports(build, failure), tmp_path)[0])
    scroller, name = page.locator("section#ops .scroll"), page.locator("section#ops tbody th").first
    before = name.bounding_box()["x"]
    assert scroller.evaluate("one => one.scrollWidth > one.clientWidth")
    scroller.evaluate("one => one.scrollLeft = 300")
    assert name.bounding_box()["x"] == pytest.approx(before, abs=2)
    assert name.bounding_box()["width"] < 130


@pytest.mark.parametrize("visit", [PHONE, DESK], ids=["phone", "desk"], indirect=True)
def test_hostile_text_is_shown_and_nothing_more(visit: Visitor, build: Build, failure: Result, tmp_path: Path) -> None:
    report = build(
        msgspec.structs.replace(failure, reason=HOSTILE),
        Result("performance/copy_blocks/large", Verdict.PASSED, figures={HOSTILE: 1.0}),
        Result("ops/linear/float32/dense,tokens=1", Verdict.UNSUPPORTED, HOSTILE),
        backend=HOSTILE,
        kernel=HOSTILE,
        device=HOSTILE,
        options={HOSTILE: HOSTILE},
        overrides=[OverrideRecord(HOSTILE, DType.FLOAT32, 1e-10, 1e-11, HOSTILE)],
        expected_failures=[ExpectedFailureRecord(HOSTILE, HOSTILE)],
    )
    report = msgspec.structs.replace(report, selection=Selection(pattern=HOSTILE), suite_version=HOSTILE)
    for file in render([report], tmp_path):
        page = visit.open(file)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.title().removesuffix(": Octavo conformance") in ("Octavo conformance", HOSTILE)
        assert page.locator("script, img, iframe").count() == 0
        assert HOSTILE in page.inner_text("main")
        assert "49" not in page.inner_text("main").replace(HOSTILE, "")
        needed, there = visit.widths()
        assert needed <= there
    assert visit.complaints == []


def test_every_link_leads_somewhere(visit: Visitor, build: Build, failure: Result, tmp_path: Path) -> None:
    odd = msgspec.structs.replace(failure, case="ops/top_k/float32/k=1,x+y,50%,a b#c")
    files = render([*_reports(build, failure), build(odd, backend="odd")], tmp_path)
    anchors = {}
    for file in files:
        page = visit.open(file)
        anchors[file.as_uri()] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)"))
        repeated = page.evaluate(
            "[...document.querySelectorAll('[id]')].map(one => one.id).filter((id, at, all) => all.indexOf(id) < at)"
        )
        assert repeated == []
    for file in files:
        links = visit.open(file).evaluate(
            "[...document.links].map(one => [one.href.split('#')[0], decodeURIComponent(one.hash.slice(1))])"
        )
        assert links
        for page_address, anchor in links:
            assert page_address in anchors
            assert not anchor or anchor in anchors[page_address]


def test_the_tables_say_what_their_cells_belong_to(
    visit: Visitor, build: Build, failure: Result, tmp_path: Path
) -> None:
    for file in render(_reports(build, failure), tmp_path):
        page = visit.open(file)
        assert page.get_attribute("html", "lang") == "en"
        assert page.locator("h1").count() == 1
        assert page.locator("table").count() == page.locator("table > caption").count() > 0
        assert page.locator("th:not([scope])").count() == 0
        assert page.locator(".scroll:not([tabindex='0'])").count() == 0
        assert page.locator("meta[name=viewport]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(
    browser: Any, build: Build, failure: Result, scheme: str, tmp_path: Path
) -> None:
    """Each small text has the contrast of 4.5 that WCAG 2 asks for."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    for file in render(_reports(build, failure), tmp_path):
        page.goto(file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        faint = page.evaluate(CONTRAST)
        assert faint == [], file.name
    context.close()


CONTRAST = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(part => part / 255)
    .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = channels(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility()) continue;
    const [a, b] = [luminance(channels(getComputedStyle(one).color)), luminance(ground(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${one.className || one.tagName}: ${one.textContent.trim()}`);
  }
  return [...new Set(faint)];
}"""


# ------------------------------------------------------------------------------------------------ without a browser


class Text(HTMLParser):
    """The text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def __str__(self) -> str:
        return " ".join("".join(self.parts).split())


def test_the_first_page_sums_up_each_report_with_its_exceptions(build: Build, failure: Result, tmp_path: Path) -> None:
    text = str(Text(render(_reports(build, failure), tmp_path)[0]))
    assert "the matrix unit rounds its inputs to TF32" in text
    assert "linear in float32: 1e-10 instead of 1e-11" in text
    assert "partial blocks are not shared yet: issue 12" in text
    assert "86.6 %" in text  # 13 of 15
    assert "100 %" in text
    assert "21 November 2026" in text
    assert "the whole suite, suite 0.9" in text


def test_a_quick_or_partial_run_says_so(build: Build, tmp_path: Path) -> None:
    quick = msgspec.structs.replace(build(), selection=Selection(pattern="ops/l*", quick=True))
    page = render([quick], tmp_path)[1]
    assert "the quick set of all levels, cases ops/l*" in str(Text(page))
    assert "octavo conformance run --backend cpu --quick --case 'ops/l*'" in str(Text(page))


def test_a_backend_of_which_nothing_passes_is_shown_as_none_that_conforms(build: Build, tmp_path: Path) -> None:
    nothing = [Result(result.case, Verdict.UNSUPPORTED, "not claimed") for result in build().results]
    index, page = render([build(*nothing)], tmp_path)
    assert "0 %" in str(Text(index))
    assert "a backend of which nothing passes does not conform" in str(Text(page))
    absent = [Result(result.case, Verdict.UNAVAILABLE, "no accelerator") for result in build().results]
    without = msgspec.structs.replace(build(*absent, kernel=""), device=None, capabilities=None)
    index, page = render([without], tmp_path)
    assert "no device" in str(Text(index))
    assert "0 %" not in str(Text(index))
    assert "No device was opened" in str(Text(page))


def test_performance_is_a_table_in_units(build: Build, tmp_path: Path) -> None:
    case = "performance/copy_blocks/large"
    figures = {"bytes_per_second": 3.21e12, "flops_per_second": 4.5e9, "of_copy_bandwidth": 0.831, "seconds": 0.0042}
    index, page = render([build(Result(case, Verdict.PASSED, figures=figures))], tmp_path)
    text = str(Text(page))
    for figure in ("3.21 TB/s", "4.5 GFLOP/s", "83.1 %", "4.2 ms"):
        assert figure in text
    assert "3.21 TB/s" in str(Text(index))
    odd = {"seconds": NonFinite.NOT_A_NUMBER, "bytes_per_second": NonFinite.INFINITY}
    assert "nan" in str(Text(render([build(Result(case, Verdict.PASSED, figures=odd))], tmp_path)[1]))


def test_figures_without_sense_are_shown_and_break_no_page(build: Build, tmp_path: Path) -> None:
    figures = product(
        (-1.0, 0.0, 1e308, 5e-324, NonFinite.INFINITY, NonFinite.NOT_A_NUMBER, None),
        (-1.0, 0.0, 1e-300, 1e308, None),
        (-1.0, 0.0, 1e308),
    )
    odd = [
        Result(f"ops/odd/float32/{index}", Verdict.FAILED, "odd", nmse, tolerance, seconds)
        for index, (nmse, tolerance, seconds) in enumerate(figures)
    ]
    text = str(Text(render([build(*odd)], tmp_path)[1]))
    assert all(f"--case {result.case}" in text for result in odd)
    assert "NMSE nan > 1e-300" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.4e-14, "2.4e-14"),
        (0.0312, "3.1e-2"),
        (0.5, "0.5"),
        (12.34, "12.3"),
        (4e7, "4.0e7"),
        (0.0, "0"),
        (math.inf, "inf"),
    ],
)
def test_an_error_is_shown_in_two_digits(value: float, shown: str) -> None:
    assert error(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(1e-11, "1e-11"), (1e-4, "1e-4"), (1.1e-10, "1.1e-10"), (0.0, "0")])
def test_a_tolerance_is_shown_as_in_the_table(value: float, shown: str) -> None:
    assert tolerance(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0126, "13 ms"), (0.9999, "1.0 s"), (59.9, "59.9 s"), (200.2, "3 min 20 s")],
)
def test_a_time_is_shown_in_the_unit_that_fits(value: float, shown: str) -> None:
    assert seconds(value) == shown


@pytest.mark.parametrize(("share", "shown"), [(1.0, "100 %"), (0.9999, "99.9 %"), (0.25, "25 %"), (0.0, "0 %")])
def test_only_all_is_a_hundred_percent(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_reports_of_one_backend_get_names_and_pages_of_their_own(build: Build, tmp_path: Path) -> None:
    later = datetime(2026, 11, 22, 6, 14, tzinfo=UTC)
    reports = [
        build(),
        build(backend="cuda", kernel="paged", device="NVIDIA H200"),
        build(backend="cuda", kernel="paged", device="NVIDIA A100"),
        build(backend="cuda", kernel="flashinfer", device="NVIDIA H200"),
        build(backend="xla", kernel="pallas"),
        build(backend="xla", kernel="pallas", date=later),
        build(backend="xla", kernel="pallas", date=later),
        build(backend="XLA", kernel="pallas"),
        build(backend="index"),
        build(backend="../../etc/passwd"),
        build(backend="\N{SNOWMAN}"),
    ]
    named = labels(reports)
    assert named == [
        "cpu",
        "cuda paged NVIDIA H200",
        "cuda paged NVIDIA A100",
        "cuda flashinfer NVIDIA H200",
        "xla 2026-11-21",
        "xla 2026-11-22",
        "xla 2026-11-22 (2)",
        "XLA",
        "index",
        "../../etc/passwd",
        "\N{SNOWMAN}",
    ]
    assert pages(named) == [
        "cpu.html",
        "cuda-paged-nvidia-h200.html",
        "cuda-paged-nvidia-a100.html",
        "cuda-flashinfer-nvidia-h200.html",
        "xla-2026-11-21.html",
        "xla-2026-11-22.html",
        "xla-2026-11-22-2.html",
        "xla.html",
        "index-2.html",
        "etc-passwd.html",
        "report.html",
    ]
    files = render(reports, tmp_path / "site")
    assert sorted(files) == sorted((tmp_path / "site").iterdir())
    assert len(set(files)) == len(reports) + 1


def test_nothing_to_render_and_nowhere_to_write_are_said_in_a_sentence(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="There is no report to render"):
        render([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written to"):
        render([build()], tmp_path / "file")
