"""Each command for real, on the demo model and a handful of tokens: the record it prints, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from octavo.config import EngineConfig
from octavo_server.bench import bench
from octavo_server.bench.startup import start
from octavo_server.cli import main

SMALL = ["--num-requests", "2", "--prompt-tokens", "16:24", "--output-tokens", "2:4", "--max-model-len", "256"]


def _run(*arguments: str) -> dict[str, Any]:
    outcome = CliRunner().invoke(bench, [*arguments, "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    result: dict[str, Any] = json.loads(outcome.stdout)  # one JSON object and nothing else
    assert set(result) == {
        "benchmark", "date", "command", "host", "versions", "engine", "workload", "results",
    }  # fmt: skip
    assert result["benchmark"] == arguments[0]
    assert result["host"]["cpu"]
    assert result["versions"]["octavo-core"]
    assert result["engine"]["threads"] >= 1
    return result


def test_throughput_counts_the_tokens_it_generated() -> None:
    result = _run("throughput", "demo", *SMALL, "--repeat", "2")
    own = result["results"]["octavo"]
    assert result["engine"]["dtype"] == "float32"
    assert result["workload"]["output_tokens"] == 6
    assert own["seconds"]["count"] == 2
    assert own["output_tokens_per_second"]["largest"] == pytest.approx(6 / own["seconds"]["smallest"])
    assert own["steps"] == 4
    assert 0 <= own["kv_waste"] < 1


def test_latency_reports_each_length_and_each_batch() -> None:
    result = _run(
        "latency", "demo", "--prompt-tokens", "4,9", "--output-tokens", "4", "--batch-sizes", "1,2",
        "--batch-prompt", "5", "--repeat", "2", "--max-model-len", "256",
    )  # fmt: skip
    single, decode = result["results"]["single_stream"], result["results"]["decode"]
    assert [row["prompt_tokens"] for row in single] == [4, 9]
    assert all(row["time_per_output_token_seconds"]["count"] == 2 * 3 for row in single)
    assert [row["batch_size"] for row in decode] == [1, 2]


def test_waste_samples_every_step_and_draws_it(tmp_path: Path) -> None:
    plot, output = tmp_path / "waste.png", tmp_path / "waste.json"
    arguments = ["--block-sizes", "8,16,7", "--plot", str(plot), "--output", str(output)]
    result = _run("waste", "demo", *SMALL, *arguments)
    results = result["results"]
    assert json.loads(output.read_text()) == result
    assert plot.read_bytes().startswith(b"\x89PNG")
    # Prompts of 16 and 24 tokens in blocks of 16, two and four steps: counted by hand in what follows.
    paged = [row for row in results["samples"]["mixed"] if row[1]]
    assert [row[0] for row in paged] == [2, 1, 1]
    assert paged[0][1:] == [48, 40, 48]
    assert results["paged"]["largest"] == pytest.approx(max(1 - used / held for _, held, used, _ in paged))
    assert "7" in results["block_sizes_skipped"]
    assert 0 < results["completions"]["saved"] < 1
    assert 0 < results["shared_prefix"]["saved"] < 1
    assert results["contiguous"]["max_model_len (Orca Max)"]["mean"] > results["paged"]["mean"]


def test_cold_start_reaches_a_token_and_its_phases_fit_into_the_total() -> None:
    cold = start(EngineConfig(max_model_len=256))
    phases = cold["phases"]
    assert list(phases)[:2] == ["interpreter", "imports"]
    assert {"backend", "resolve", "tokenizer", "weights", "kv_cache", "first_token"} <= set(phases)
    assert all(seconds >= 0 for seconds in phases.values())
    assert sum(phases.values()) <= cold["total"]
    assert len(cold["token_ids"]) == 1


@pytest.mark.slow
def test_startup_reports_phases_and_total() -> None:
    results = _run("startup", "demo", "--repeat", "2", "--max-model-len", "256")["results"]
    assert results["total_seconds"]["count"] == 2
    assert all(each["count"] == 2 for each in results["phases_seconds"].values())


@pytest.mark.slow
def test_peer_generates_the_same_tokens_from_the_same_ids() -> None:
    result = _run("throughput", "demo", *SMALL, "--versus", "transformers")
    results = result["results"]
    assert results["identical_requests"] == 2
    assert results["transformers"]["threads"] == result["engine"]["threads"]
    assert results["transformers"]["dtype"] == "float32"
    assert results["ratio"]["median"] > 0


def test_another_backend_runs_the_same_token_ids_in_the_same_run() -> None:
    results = _run("throughput", "demo", *SMALL, "--versus", "cpu")["results"]
    assert results["identical_requests"] == 2
    assert results["versus"]["engine"]["backend"] == "cpu"
    assert results["ratio"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["throughput", "--prompt-tokens", "9:3"], "--prompt-tokens takes a range"),
        (["throughput", "--output", "/nowhere/result.json"], "there is no directory /nowhere"),
        (["throughput", "/nowhere/model"], "no file or directory /nowhere/model"),
        (["waste", "--plot", "waste.bmp"], "must end in .png, .svg or .pdf"),
        (["latency", "--max-num-seqs", "4"], "max_num_seqs allows 4"),
        (["throughput", "--max-model-len", "100"], "the context of this model here is 100"),
        (["throughput", "--backend", "abacus"], "abacus"),
        (["throughput", "--versus", "abacus"], "There is no backend 'abacus'"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(arguments: list[str], sentence: str) -> None:
    outcome = CliRunner().invoke(bench, arguments)
    assert isinstance(outcome.exception, ValueError), outcome.output
    assert sentence in str(outcome.exception)


def test_list_of_numbers_is_checked_before_anything_runs() -> None:
    outcome = CliRunner().invoke(bench, ["latency", "--batch-sizes", "1,x"])
    assert outcome.exit_code == 2
    assert "expected numbers such as 1,8,32" in outcome.output


def test_mistake_ends_the_command_line_with_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "throughput", "--num-requests", "2", "/nowhere/model"])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "octavo: There is no file or directory /nowhere/model.\n"
