"""A benchmark's record as JSON for programs, or as tables for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from octavo_server.bench.errors import BenchError


def check_output(path: Path | None) -> None:
    """Before the measurement: raises BenchError where its record could not be written in the end."""
    if path is not None and not path.parent.is_dir():
        raise BenchError(f"--output {path}: there is no directory {path.parent}.")


def stage(text: str) -> None:
    """Say on standard error what is measured now: some of it takes minutes."""
    click.echo(f"{text} ...", err=True)


def show(result: dict[str, Any], as_json: bool, output: Path | None) -> None:
    """Write the record to `output` if that is given, and print it."""
    text = json.dumps(result, indent=2)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
        return
    console = Console(highlight=False)
    console.print(_heading(result), style="dim", soft_wrap=True)
    for table in _TABLES[result["benchmark"]](result):
        console.print(table)


def _heading(result: dict[str, Any]) -> str:
    engine, host, versions = result["engine"], result["host"], result["versions"]
    shown = ("octavo-core", "torch", "transformers")
    packages = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    return (
        f"{engine['model']} in {engine['dtype']} on {engine['backend']} (kernel {engine['kernel']}), "
        f"blocks of {engine['block_size']}\n"
        f"{host['cpu']}, {host['usable_cpus']} CPUs, load {host['load_average'][0]:g}; {packages}"
    )


def _throughput(result: dict[str, Any]) -> list[Table]:
    results, workload = result["results"], result["workload"]
    peer = results.get("transformers")
    table = Table(
        title=f"{workload['num_requests']} requests, {workload['prompt_tokens']:,} prompt and "
        f"{workload['output_tokens']:,} output tokens",
        min_width=62,
        caption="bytes read: all weights once a step, and the keys and values of each token's context",
    )
    table.add_column("")
    table.add_column("octavo", justify="right")
    own = results["octavo"]
    rows = [*_own_rows(own), ("threads", str(result["engine"]["threads"]))]
    theirs: dict[str, list[str]] = {}
    if peer is not None:
        for size, each in peer["batch_sizes"].items():
            best = " *" if int(size) == peer["best_batch_size"] else ""
            table.add_column(f"transformers\nbatch {size}{best}", justify="right")
            for label, key in (
                ("output tokens/s", "output_tokens_per_second"),
                ("total tokens/s", "total_tokens_per_second"),
                ("seconds", "seconds"),
            ):
                theirs.setdefault(label, []).append(_of(each[key], "{:.1f}"))
            theirs.setdefault("threads", []).append(str(peer["threads"]))
    if (other := results.get("versus")) is not None:
        table.add_column(f"{other['engine']['backend']} *", justify="right")
        theirs = {label: [value] for label, value in _own_rows(other)}
    for label, value in rows:
        table.add_row(label, value, *theirs.get(label, []))
    if "ratio" in results:
        table.add_section()
        table.add_row("ratio to *", _of(results["ratio"], "{:.2f}"))
        table.add_row("same tokens as *", f"{results['identical_requests']} of {workload['num_requests']} requests")
    return [table]


def _own_rows(own: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("output tokens/s", _of(own["output_tokens_per_second"], "{:.1f}")),
        ("total tokens/s", _of(own["total_tokens_per_second"], "{:.1f}")),
        ("seconds", _of(own["seconds"], "{:.1f}")),
        ("steps", str(own["steps"])),
        ("sequences a step", f"{own['mean_batch']:.1f}"),
        ("bytes read/s", _of(own["bytes_read_per_second"], "{:.1f} GB", 1e-9)),
        ("KV waste", f"{own['kv_waste']:.2%}"),
    ]


def _latency(result: dict[str, Any]) -> list[Table]:
    workload = result["workload"]
    single = Table(title=f"One request at a time, {workload['output_tokens']} output tokens", min_width=62)
    for name in ("prompt tokens", "first token, ms", "p95", "each token after, ms", "p95", "tokens/s"):
        single.add_column(name, justify="right")
    for row in result["results"]["single_stream"]:
        first, each = row["time_to_first_token_seconds"], row["time_per_output_token_seconds"]
        figures = [1000 * value for value in (first["median"], first["p95"], each["median"], each["p95"])]
        single.add_row(
            str(row["prompt_tokens"]),
            *(f"{value:.1f}" for value in figures),
            f"{row['output_tokens_per_second']:.1f}",
        )
    batch = Table(title=f"Decoding together, prompts of {workload['batch_prompt_tokens']} tokens")
    for name in ("batch", "step, ms", "p95", "tokens/s"):
        batch.add_column(name, justify="right")
    for row in result["results"]["decode"]:
        step = row["step_seconds"]
        batch.add_row(
            str(row["batch_size"]),
            f"{1000 * step['median']:.1f}",
            f"{1000 * step['p95']:.1f}",
            f"{row['output_tokens_per_second']:.1f}",
        )
    return [single, batch]


def _waste(result: dict[str, Any]) -> list[Table]:
    results = result["results"]
    waste = Table(title=f"Allocated KV slots that hold no token (PagedAttention: below {results['bound']:.0%})")
    waste.add_column("")
    for name in ("mean", "largest", "overall", "saved"):
        waste.add_column(name, justify="right")
    completions, prefix = results["completions"], results["shared_prefix"]
    waste.add_row("paged, mixed requests", *_wastes(results["paged"]))
    waste.add_row(f"paged, n = {completions['n']}", *_wastes(completions), f"{completions['saved']:.1%}")
    waste.add_row(f"paged, shared prefix of {prefix['prefix_tokens']}", *_wastes(prefix), f"{prefix['saved']:.1%}")
    waste.add_section()
    for name, each in results["contiguous"].items():
        waste.add_row(f"contiguous, {name}", *_wastes(each))
    sizes = Table(title="Mixed requests by block size", min_width=48)
    for name in ("tokens a block", "mean", "largest", "overall"):
        sizes.add_column(name, justify="right")
    for size, each in results["block_sizes"].items():
        sizes.add_row(size, *_wastes(each))
    running = Table(title="Mixed requests by number running", min_width=36)
    for name in ("running", "mean waste"):
        running.add_column(name, justify="right")
    for count, mean in results["by_running"].items():
        running.add_row(count, f"{mean:.2%}")
    return [waste, sizes, running]


def _startup(result: dict[str, Any]) -> list[Table]:
    results = result["results"]
    table = Table(
        title=f"A fresh process to its first token, {result['workload']['repeat']} starts, warm disk", min_width=62
    )
    for name in ("phase", "median, s", "smallest", "largest"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for name, each in {**results["phases_seconds"], "total": results["total_seconds"]}.items():
        if name == "total":
            table.add_section()
        table.add_row(name.replace("_", " "), *(f"{each[part]:.2f}" for part in ("median", "smallest", "largest")))
    return [table]


def _wastes(each: dict[str, float]) -> list[str]:
    return [f"{each[part]:.2%}" for part in ("mean", "largest", "overall")]


def _of(summary: dict[str, float], form: str, factor: float = 1.0) -> str:
    """The median, with the spread where there was more than one measurement."""
    median = form.format(factor * summary["median"])
    return median if summary["count"] == 1 else f"{median} ±{summary['spread'] / 2:.0%}"


_TABLES = {"throughput": _throughput, "latency": _latency, "waste": _waste, "startup": _startup}
