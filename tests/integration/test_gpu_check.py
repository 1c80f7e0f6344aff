"""`make gpu-check` without a card: a dry run takes every part to its end, and faults cost no more than themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the benchmarks are part of the checkout and of no package

from benchmarks.gpu.busy import idle_of  # noqa: E402
from benchmarks.gpu.document import make_document  # noqa: E402
from benchmarks.gpu.environment import MissingPackageError, wheels_for  # noqa: E402
from benchmarks.gpu.goals import goals  # noqa: E402
from benchmarks.gpu.plan import PARTS, Part  # noqa: E402
from benchmarks.gpu.supervise import PartResult, Result, run_part  # noqa: E402
from benchmarks.gpu.verdict import NO_TIME, succeeded  # noqa: E402

SUMMARY = {"count", "median", "p95", "smallest", "largest", "spread"}
TIMED = {"seconds", "timed_by"}
MEMORY = TIMED | {"bytes", "bytes_per_second", "of_copy_bandwidth"}
BOTH = MEMORY | {"flops", "flops_per_second", "of_matrix_rate"}
RUN = {"seconds", "output_tokens", "output_tokens_per_second", "complete", "shortened", "first_tokens"}

FIGURES: dict[str, set[str]] = {
    "facts": {"device", "arch", "driver", "kernel", "memory", "card", "versions", "runtime", "host"},
    "conformance/quick": {
        "cases",
        "run",
        "complete",
        "passed",
        "failed",
        "unavailable",
        "levels",
        "failures",
        "report",
    },
    "ceiling/copy": MEMORY,
    "ceiling/matrix": TIMED | {"flops", "flops_per_second", "of_matrix_rate", "size"},
    "decode/": BOTH,
    "decode-sdpa/": BOTH,
    "decode-flex/": BOTH,
    "prefill/": BOTH,
    "prefill-sdpa/": BOTH,
    "prefill-flex/": BOTH,
    "rms_norm/": MEMORY,
    "rotary_write_kv/": MEMORY,
    "gated_activation/": MEMORY,
    "linear/": BOTH,
    "quantized_linear/int4/": BOTH,
    "quantized_linear/int8/": BOTH,
    "mixture_of_experts/": BOTH | {"experts_used"},
    "top_k/": MEMORY,
    "top_k-torch/": MEMORY,
    "serving/load_rate": {"seconds", "bytes", "bytes_per_second"},
    "serving/open": {"phases", "weights_bytes", "dtype", "kv_cache_bytes", "kv_cache_tokens", "block_size"},
    "serving/single_stream": {"time_to_first_token", "seconds_per_token", "gaps", "weight_bytes_per_second"},
    "serving/host_time/": {"running", "steps", "step_seconds", "host_seconds", "device_idle_share"},
    "serving/throughput/": RUN | {"curve", "steps", "preemptions"},
    "transformers/open": {"seconds", "parameters", "attention", "dtype"},
    "transformers/generate/single_stream": {"time_to_first_token", "seconds_per_token"},
    "transformers/generate/requests": RUN,
    "transformers/continuous/": RUN,
    "startup/kernels=cold": {"phases", "first_token"},
    "startup/kernels=warm": {"phases", "first_token"},
}
"""What a record has to hold, by the beginnings of the measurements' names."""


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The record of a dry run of everything, and what it printed."""
    folder = tmp_path_factory.mktemp("gpu-check")
    output = folder / "dry.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(output), "--site", str(folder / "site")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert output.is_file(), done.stderr
    record = json.loads(output.read_text())
    troubles = [(one["name"], one["reason"]) for one in record["measurements"] if one["status"] not in ("ok", "absent")]
    assert done.returncode == 0, (troubles, record["parts"], done.stderr[-2000:])
    return record, done.stdout


def test_dry_run_takes_every_part_to_its_end_with_every_figure(dry_run: tuple[dict[str, Any], str]) -> None:
    record, _ = dry_run
    assert set(record["parts"]) == {part.name for part in PARTS} - {"conformance-whole"}
    assert all(part["reason"] == "" and part["processes"] == 1 for part in record["parts"].values())
    for start, wanted in FIGURES.items():
        found = [one for one in record["measurements"] if one["name"].startswith(start)]
        assert found, f"nothing was measured for {start}"
        for one in found:
            assert one["status"] == "ok", (one["name"], one["reason"])
            assert wanted <= set(one["figures"]), one["name"]
    assert {"date", "commit", "command", "backend", "goals"} <= set(record)


def test_what_is_not_measured_is_a_peer_that_is_not_installed(dry_run: tuple[dict[str, Any], str]) -> None:
    absent = [one for one in dry_run[0]["measurements"] if one["status"] == "absent"]
    assert all("flashinfer" in one["name"] and "not installed" in one["reason"] for one in absent)


def test_numbers_of_a_dry_run_never_look_like_results(dry_run: tuple[dict[str, Any], str]) -> None:
    record, printed = dry_run
    assert record["dry_run"] is True
    assert "say nothing" in record["warning"]
    assert printed.startswith("*** A dry run")
    assert all(goal["met"] is None for goal in record["goals"])
    refused = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", "benchmarks/results/dry.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "does not belong in benchmarks/results" in refused.stderr


def test_both_engines_run_the_same_model(dry_run: tuple[dict[str, Any], str]) -> None:
    found = {one["name"]: one["figures"] for one in dry_run[0]["measurements"]}
    own, *peers = (
        next(figures["first_tokens"] for name, figures in found.items() if name.startswith(start))
        for start in ("serving/throughput/", "transformers/generate/requests", "transformers/continuous/")
    )
    assert len(set(own)) > 1, "tokens that are all alike tell nothing"
    assert peers == [own, own]


# ------------------------------------------------------------------------------------------------------------- faults

FAULTY = """
import os, time
from benchmarks.gpu.part import AbsentError, Measurement

def measurements(scale, argument):
    yield Measurement("first", lambda bench: {"value": 1})
    yield Measurement("raises", lambda bench: 1 / 0)
    yield Measurement("absent", absent)
    yield Measurement("crashes", lambda bench: os.abort())
    yield Measurement("hangs", hangs, limit=1.0)
    yield Measurement("last", lambda bench: {"value": bench.scale.heads, "argument": bench.argument})

def absent(bench):
    raise AbsentError("There is no such thing here.")

def hangs(bench):
    bench.note({"value": 2})
    time.sleep(600)
"""


def run_faulty(tmp_path: Path, source: str, seconds: float = 60.0) -> dict[str, Result]:
    (tmp_path / "faulty_part.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    part = Part("faulty", "faulty_part", seconds, "given")
    outcome = run_part(part, ["--backend", "cpu", "--dry-run"], environment, tmp_path, seconds)
    return {result.name: result for result in outcome.results} | {"": Result("", reason=outcome.reason)}


def test_a_crash_or_a_hang_costs_one_measurement(tmp_path: Path) -> None:
    found = run_faulty(tmp_path, FAULTY)
    statuses = {name: result.status for name, result in found.items() if name}
    assert statuses == {
        "first": "ok", "raises": "failed", "absent": "absent", "crashes": "lost", "hangs": "lost", "last": "ok",
    }  # fmt: skip
    assert found["raises"].reason == "ZeroDivisionError: division by zero"
    assert found["absent"].reason == "There is no such thing here."
    assert "SIGABRT" in found["crashes"].reason
    assert "longer than its limit of 1 s" in found["hangs"].reason
    assert found["hangs"].figures == {"value": 2}, "what was noted before is kept"
    assert found["last"].figures == {"value": 4, "argument": "given"}
    assert found[""].reason == ""


def test_a_part_whose_time_is_over_names_what_it_skipped(tmp_path: Path) -> None:
    source = FAULTY.replace("1 / 0", "time.sleep(3)").replace("limit=1.0", "limit=60.0")
    found = run_faulty(tmp_path, source, seconds=1.5)
    assert found["first"].status == "ok"
    assert {found[name].status for name in ("absent", "crashes", "hangs", "last")} == {"skipped"}


def test_a_part_that_cannot_begin_says_why(tmp_path: Path) -> None:
    found = run_faulty(tmp_path, "raise RuntimeError('no driver')")
    assert list(found) == [""]
    assert "RuntimeError: no driver" in found[""].reason


# ---------------------------------------------------------------------------------------------------------- exit code


def record_of(*parts: PartResult) -> dict[str, Any]:
    return make_document({"date": ""}, parts, dry=False)


def conformance(part: str, failed: int = 0, run: int = 10, unavailable: int = 0) -> PartResult:
    figures = {"cases": 10, "run": run, "complete": run == 10, "failed": failed, "unavailable": unavailable}
    name = part.replace("-", "/")
    return PartResult(part, results=[Result(name, "ok", figures=figures)])


@pytest.mark.parametrize("part", ["conformance-quick", "conformance-whole"])
def test_a_check_with_a_case_that_fails_does_not_succeed(part: str) -> None:
    assert succeeded(record_of(conformance(part)))
    assert not succeeded(record_of(conformance(part, failed=1)))
    assert not succeeded(record_of(conformance(part, failed=1, run=4)))
    assert not succeeded(record_of(conformance(part, unavailable=10))), "nothing has run on a device"


def test_only_the_whole_suite_may_be_cut_when_time_is_over() -> None:
    assert not succeeded(record_of(conformance("conformance-quick", run=9)))
    assert succeeded(record_of(conformance("conformance-whole", run=9)))
    for part, expected in (("conformance-whole", True), ("conformance-quick", False), ("serving", False)):
        assert succeeded(record_of(PartResult(part, reason=NO_TIME))) is expected
        assert succeeded(record_of(PartResult(part, results=[Result("any", "skipped")]))) is expected
    assert not succeeded(record_of(PartResult("conformance-whole", reason="It crashed.")))


@pytest.mark.parametrize("status", ["failed", "lost"])
def test_a_measurement_that_did_not_end_well_is_no_success(status: str) -> None:
    assert succeeded(record_of(PartResult("operations", results=[Result("one", "ok"), Result("peer", "absent")])))
    assert not succeeded(record_of(PartResult("operations", results=[Result("one", "ok"), Result("two", status)])))
    assert not succeeded(record_of(PartResult("conformance-whole", results=[Result("conformance/whole", status)])))


def test_the_command_ends_as_the_verdict_says(tmp_path: Path) -> None:
    """A backend that there is not: the suite has no device, and its measurement comes to its end all the same."""
    output = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--backend", "nowhere"]
    command += ["--parts", "conformance-quick", "--output", str(output), "--site", str(tmp_path / "site")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (measured,) = json.loads(output.read_text())["measurements"]
    assert measured["status"] == "ok", measured["reason"]
    assert measured["figures"]["passed"] == 0
    assert ended.returncode == 1


# -------------------------------------------------------------------------------------------------------- environment


def wheel(folder: Path, name: str, version: str, *needs: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(metadata))
    return path


def test_a_wheel_brings_along_what_it_needs_and_the_machine_lacks(tmp_path: Path) -> None:
    upper = wheel(tmp_path, "absent_upper", "2.0", "absent-lower==1.5", "pytest>=1", "absent-never; extra == 'more'")
    lower = wheel(tmp_path, "absent_lower", "1.5")
    wheel(tmp_path, "absent_other", "1.0")
    assert set(wheels_for([Requirement("absent-upper>=1"), Requirement("numpy")], tmp_path)) == {upper, lower}


def test_what_is_missing_is_named_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    wheel(tmp_path, "absent_upper", "2.0", "absent-lower==1.5")
    with pytest.raises(MissingPackageError, match=r"lacks absent-lower==1.5, absent-old<1; run `make gpu-bundle`"):
        wheels_for([Requirement("absent-upper"), Requirement("absent-old<1")], tmp_path)


# ------------------------------------------------------------------------------------------------------------ figures


def test_idle_time_is_what_no_span_covers() -> None:
    assert idle_of([]) is None
    assert idle_of([(0.0, 10.0)]) == 0.0
    assert idle_of([(6.0, 10.0), (0.0, 2.0), (1.0, 4.0), (7.0, 8.0)]) == pytest.approx(0.2)


def test_a_peer_that_was_cut_short_is_compared_at_the_tokens_it_made() -> None:
    own = {"curve": [[1.0, 10], [2.0, 100], [10.0, 1000]], "first_tokens": [1, 2]}
    peer = {"seconds": 30.0, "output_tokens": 90, "first_tokens": [1, 3]}
    measurements = {
        "serving/throughput/requests=2,prompt=8,output=500": {"figures": own},
        "transformers/generate/requests=2,prompt=8,output=50": {"figures": peer},
    }
    (goal,) = (goal for goal in goals(measurements) if goal.name.startswith("time for the same requests"))
    assert goal.value == 15.0
    assert goal.met is False
    assert "90 tokens" in goal.note
    assert "1 of 2" in goal.note


def test_shares_are_of_the_ceilings_of_the_same_run() -> None:
    results = [
        Result("ceiling/copy", "ok", figures={"bytes_per_second": 4.0e12}),
        Result("ceiling/matrix", "ok", figures={"flops_per_second": 8.0e14}),
        Result("decode/batch=1,context=8", "ok", figures={"bytes_per_second": 3.0e12, "flops_per_second": 2.0e13}),
    ]
    document = make_document({"date": ""}, [PartResult("operations", results=results)], dry=False)
    figures = document["measurements"][-1]["figures"]
    assert (figures["of_copy_bandwidth"], figures["of_matrix_rate"]) == (0.75, 0.025)
    (goal,) = (goal for goal in document["goals"] if "decode" in goal["name"])
    assert (goal["value"], goal["met"]) == (0.75, False)
