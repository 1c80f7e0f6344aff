"""`octavo generate MODEL --prompt TEXT`"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo_server.options import OptionGroups, settings_from, settings_options
from octavo_server.settings import ENGINE_OPTIONS, ENVIRONMENT_PREFIX

if TYPE_CHECKING:
    from octavo.engine import Engine
    from octavo.processor import EngineRequest


@click.command(cls=OptionGroups)
@click.argument("model", required=False)
@click.option("--prompt", required=True, help="The text to complete, or with --chat to answer.")
@click.option("--chat", is_flag=True, help="Send the prompt as a user's message through the model's chat template.")
@click.option("--system", help="With --chat: the system message.")
@click.option("--max-tokens", type=int, default=128, show_default=True, help="Most tokens to generate.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample from the likeliest tokens up to this sum.",
)
@click.option("--top-k", type=int, default=-1, show_default=True, help="Sample from this many tokens; -1 is all.")
@click.option("--stop", multiple=True, help="End before this text, repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of text as it comes.")
@settings_options(only=ENGINE_OPTIONS, without=("model", "warm_up_seconds"))
def generate(
    model: str | None,
    prompt: str,
    chat: bool,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    stop: tuple[str, ...],
    as_json: bool,
    config: Path | None,
    **given: Any,
) -> None:
    """Complete a prompt with MODEL in this process, without a server.

    With a temperature, the same --seed gives the same answer.
    """
    from octavo.engine import Engine
    from octavo.errors import ConfigError
    from octavo.sampling.params import SamplingParams
    from octavo_server.progress import LoadingProgress

    if system is not None and not chat:
        raise ConfigError("--system needs --chat: a plain completion has no system message.")
    # Before the model loads: a wrong value should not cost the wait.
    params = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, stop=stop, logprobs=None
    )
    settings = settings_from(model, config, given)
    # Beside an answer, a log is for those who ask for it.
    log_level = settings.log_level if f"{ENVIRONMENT_PREFIX}LOG_LEVEL" in os.environ else "warning"
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s %(message)s")
    engine_config = replace(settings.engine_config(), warm_up_seconds=0.0)  # one prompt is soon done without
    with LoadingProgress() as progress:
        engine = Engine.from_config(engine_config, progress)
    if chat:
        messages = [{"role": "system", "content": system}] if system is not None else []
        request = engine.processor.process_chat("generate", [*messages, {"role": "user", "content": prompt}], params)
    else:
        request = engine.processor.process("generate", prompt, params)
    try:
        result = _run(engine, request, stream=not as_json)
    except KeyboardInterrupt:
        # At once, with the code of click.Abort: an interpreter that is taken down under a compiler's threads may crash.
        sys.stdout.flush()
        os._exit(130)
    if as_json:
        click.echo(json.dumps({"model": settings.model, "prompt": prompt, **result}, indent=2))


def _run(engine: Engine, request: EngineRequest, stream: bool) -> dict[str, object]:
    """Run one request to its end. Raises click.ClickException when it fails inside the engine, and EngineDeadError."""
    started = time.monotonic()
    text: list[str] = []
    tokens: list[int] = []
    finish_reason: str | None = None
    engine.add(request)
    try:
        while engine.has_work:
            for update in engine.step():
                if update.error is not None:
                    raise click.ClickException(update.error)
                for sequence in update.sequences:
                    text.append(sequence.text)
                    tokens += sequence.token_ids
                    finish_reason = sequence.finish_reason or finish_reason
                    if stream:
                        click.echo(sequence.text, nl=False)
    finally:
        if stream:
            click.echo()  # what went wrong is said on a line of its own
    return {
        "text": "".join(text),
        "token_ids": tokens,
        "finish_reason": finish_reason,
        "prompt_tokens": len(request.prompt_token_ids),
        "completion_tokens": len(tokens),
        "seconds": round(time.monotonic() - started, 3),
    }
