"""Reports made by hand, of a suite that exists only here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from octavo.backend import Capabilities, DType
from octavo_conformance.case import Level
from octavo_conformance.report.assemble import claims_of
from octavo_conformance.report.document import (
    Backend,
    DeviceRecord,
    ExpectedFailureRecord,
    Host,
    OverrideRecord,
    Report,
    Result,
    Selection,
)
from octavo_conformance.verdict import Verdict

IDS = (
    "contract/discovery/found_by_name",
    "contract/memory/figures_are_plausible",
    "ops/linear/float32/dense,tokens=1",
    "ops/linear/float32/dense,tokens=33",
    "ops/linear/float32/bits=4,group=32",
    "ops/linear/bfloat16/dense,tokens=1",
    "ops/linear/bfloat16/dense,tokens=33",
    "ops/paged_attention/float32/decode,heads=9x3x64,block=16",
    "ops/paged_attention/float32/prefill,heads=8x2x80,block=16,window=33",
    "ops/paged_attention/bfloat16/decode,heads=9x3x64,block=16",
    "ops/top_k/float32/k=5",  # in one dtype only
    "step/llama/float32/prefill",
    "engine/prefix_cache/partial_block",
    "invariance/draws/thousand_seeds",
    "performance/copy_blocks/large",
)
FAILING = "ops/paged_attention/float32/prefill,heads=8x2x80,block=16,window=33"


def passing() -> dict[str, Result]:
    """A result for each case, all of them passed."""
    results = {}
    for case in IDS:
        compares = case.startswith(("ops/", "step/"))
        results[case] = Result(
            case=case,
            verdict=Verdict.PASSED,
            nmse=2.4e-14 if compares else None,
            tolerance=1e-11 if compares else None,
            seconds=0.012,
            figures={"bytes_per_second": 1.23e10, "seconds": 0.004} if case.startswith("performance/") else {},
        )
    return results


Build = Callable[..., Report]


@pytest.fixture
def build() -> Build:
    """build(*results, backend=..., ...): a report in which all cases passed, but for the results that are given."""

    def made(
        *results: Result,
        backend: str = "cpu",
        kernel: str = "avx512",
        device: str = "A Processor",
        date: datetime = datetime(2026, 11, 21, 6, 14, tzinfo=UTC),
        overrides: Sequence[OverrideRecord] = (),
        expected_failures: Sequence[ExpectedFailureRecord] = (),
        options: dict[str, str] | None = None,
    ) -> Report:
        found = {**passing(), **{result.case: result for result in results}}
        return Report(
            schema=1,
            suite_version="0.9",
            api_version=1,
            octavo_version="0.1.0",
            date=date,
            backend=Backend(backend, f"octavo-{backend}", "0.1.0", kernel, options=options or {}),
            device=DeviceRecord(device, "x86_64/avx512", "", ("4 threads",)),
            capabilities=claims_of(Capabilities(dtypes=(DType.FLOAT32, DType.BFLOAT16))),
            host=Host("Linux 6.1", "x86_64", "A Processor", "3.11.9", {"octavo-core": "0.1.0", "numpy": "2.4.0"}),
            selection=Selection(),
            overrides=tuple(overrides),
            expected_failures=tuple(expected_failures),
            results=tuple(found.values()),
        )

    return made


@pytest.fixture
def failure() -> Result:
    """A case of paged attention that failed."""
    return Result(
        case=FAILING,
        verdict=Verdict.FAILED,
        reason="paged_attention in float32: NMSE 3.1e-02, 1.0e-10 is allowed (q [17, 8, 80], window 33).",
        nmse=0.0312,
        tolerance=1e-10,
        seconds=0.031,
    )


@pytest.fixture
def listed() -> Callable[[str, Selection], Sequence[str]]:
    """The must-pass lists of the suite that these reports are of."""

    def ids(suite_version: str, selection: Selection) -> Sequence[str]:
        if suite_version != "0.9":
            raise ValueError(f"There are no must-pass lists of suite version {suite_version!r} here.")
        return [case for case in IDS if Level(case.split("/")[0]) in selection.levels]

    return ids
