"""The commands of `octavo bench`.

What measures is imported when it runs, so that `--help` needs no engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo_server.options import OptionGroups, engine_options, settings_from

if TYPE_CHECKING:
    from octavo_server.bench.workload import Lengths

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@click.group()
def bench() -> None:
    """Measure throughput, latency, KV waste and start-up on this machine."""


def _number(name: str, default: int, text: str, least: int = 1) -> Decorator:
    return click.option(name, type=click.IntRange(least), default=default, show_default=True, help=text)


def _range(name: str, default: str, text: str) -> Decorator:
    return click.option(name, default=default, show_default=True, metavar="MIN:MAX", help=text)


def _file(name: str, text: str) -> Decorator:
    return click.option(name, type=click.Path(path_type=Path, dir_okay=False), help=text)


def _list(name: str, default: str, text: str) -> Decorator:
    def parse(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
        try:
            numbers = tuple(int(word) for word in value.split(","))
        except ValueError:
            raise click.BadParameter(f"expected numbers such as {default} and got {value!r}.") from None
        if min(numbers) < 1:
            raise click.BadParameter(f"expected numbers of at least 1 and got {value!r}.")
        return numbers

    return click.option(name, default=default, show_default=True, callback=parse, metavar="N,N,...", help=text)


def _reports(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the model, and where the record goes."""
    function = _file("--output", "Write the JSON object to a file.")(function)
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
    return click.argument("model", required=False)(as_json(function))


def _workload(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the mixed workload's options; --seed is the engine's."""
    function = _range("--output-tokens", "8:172", "Output lengths in tokens.")(function)
    function = _range("--prompt-tokens", "16:460", "Prompt lengths in tokens.")(function)
    return _number("--num-requests", 32, "Requests, all there at the start.")(function)


@bench.command(cls=OptionGroups, short_help="Tokens per second on mixed requests, beside a peer.")
@_reports
@_workload
@_number("--repeat", 1, "Passes; medians are reported.")
@click.option(
    "--versus",
    metavar="transformers|BACKEND",
    help="Run a peer, or another backend, on the same token ids, taking turns.",
)
@engine_options
def throughput(
    model: str | None,
    as_json: bool,
    output: Path | None,
    num_requests: int,
    prompt_tokens: str,
    output_tokens: str,
    repeat: int,
    versus: str | None,
    config: Path | None,
    **given: Any,
) -> None:
    """Output tokens per second on mixed requests that are all there at the start.

    Greedy, in float32 unless --dtype says otherwise, with the end-of-sequence token ignored.
    """
    from octavo_server.bench.show import check_output, show
    from octavo_server.bench.throughput import measure

    check_output(output)
    prompts, outputs = _lengths(prompt_tokens, output_tokens)
    engine = settings_from(model, config, given).engine_config()
    if engine.dtype == "auto":
        engine = replace(engine, dtype="float32")  # what the peer computes in
    show(measure(engine, num_requests, prompts, outputs, repeat, versus), as_json, output)


@bench.command(cls=OptionGroups, short_help="Time to first token and per token, speed by batch size.")
@_reports
@_list("--prompt-tokens", "16,128,460", "Prompt lengths of the single streams.")
@_number("--output-tokens", 64, "Tokens each request generates.", least=2)
@_list("--batch-sizes", "1,8,32", "Batches that decode together.")
@_number("--batch-prompt", 128, "Prompt length in these batches.")
@_number("--repeat", 5, "Single streams of each length.")
@engine_options
def latency(
    model: str | None,
    as_json: bool,
    output: Path | None,
    prompt_tokens: tuple[int, ...],
    output_tokens: int,
    batch_sizes: tuple[int, ...],
    batch_prompt: int,
    repeat: int,
    config: Path | None,
    **given: Any,
) -> None:
    """Time to first token and per output token of one stream, and decode speed by batch size.

    Measured inside the engine, without HTTP.
    """
    from octavo_server.bench.latency import measure
    from octavo_server.bench.show import check_output, show

    check_output(output)
    engine = settings_from(model, config, given).engine_config()
    result = measure(engine, prompt_tokens, output_tokens, batch_sizes, batch_prompt, repeat)
    show(result, as_json, output)


@bench.command(cls=OptionGroups, short_help="KV slots without a token, and what sharing saves.")
@_reports
@_workload
@_list("--block-sizes", "8,16,32,64", "Block sizes to compare, as far as the backend does them.")
@_number("--completions", 4, "n of the run that shares prompt blocks.", least=2)
@_file("--plot", "Draw the result: .png, .svg or .pdf.")
@engine_options
def waste(
    model: str | None,
    as_json: bool,
    output: Path | None,
    num_requests: int,
    prompt_tokens: str,
    output_tokens: str,
    block_sizes: tuple[int, ...],
    completions: int,
    plot: Path | None,
    config: Path | None,
    **given: Any,
) -> None:
    """KV slots that are allocated and hold no token, and what sharing saves.

    Sampled after every step of the real engine.
    """
    from octavo_server.bench.plot import plot_waste, require_matplotlib
    from octavo_server.bench.show import check_output, show
    from octavo_server.bench.waste import measure

    check_output(output)
    if plot is not None:
        require_matplotlib(plot)
    prompts, outputs = _lengths(prompt_tokens, output_tokens)
    engine = settings_from(model, config, given).engine_config()
    result: dict[str, Any] = measure(engine, num_requests, prompts, outputs, block_sizes, completions)
    if plot is not None:
        plot_waste(result["results"], result["engine"], plot)
    show(result, as_json, output)


@bench.command(cls=OptionGroups, short_help="A fresh process to its first token, by phase.")
@_reports
@_number("--repeat", 5, "Fresh processes to measure.")
@engine_options
def startup(
    model: str | None, as_json: bool, output: Path | None, repeat: int, config: Path | None, **given: Any
) -> None:
    """Time from starting a process to its first token, phase by phase, with the model already on the disk."""
    from octavo_server.bench.show import check_output, show
    from octavo_server.bench.startup import measure

    check_output(output)
    show(measure(settings_from(model, config, given).engine_config(), repeat), as_json, output)


def _lengths(prompt_tokens: str, output_tokens: str) -> tuple[Lengths, Lengths]:
    from octavo_server.bench.workload import OUTPUT_LENGTHS, PROMPT_LENGTHS, Lengths

    return (
        Lengths.parse("--prompt-tokens", prompt_tokens, PROMPT_LENGTHS.skew),
        Lengths.parse("--output-tokens", output_tokens, OUTPUT_LENGTHS.skew),
    )
