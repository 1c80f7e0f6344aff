"""The engine on hostile memory, and what it generates held against transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from octavo import LLM
from octavo.outputs import CompletionOutput, RequestOutput
from octavo_conformance.hostile.paged_model import cache_tolerance, kv_layout
from octavo_conformance.oracles.models import TinyModel
from octavo_conformance.workbench import CaseFailure, Workbench

DEVIATIONS = 4.0
"""How far one logit may be off, in units of the root mean square that its row is allowed."""

ROOM = 512
"""Tokens that fit a cache unless a case says otherwise: enough for what it does."""


@contextmanager
def open_llm(
    bench: Workbench,
    model: TinyModel,
    room: int = ROOM,
    *,
    block_size: int | None = None,
    backend: str = "",
    **options: Any,
) -> Iterator[LLM]:
    """A tiny model in an engine whose blocks come in a shuffled order and hold NaN whenever nobody owns them.

    room: tokens that fit the KV cache. block_size: None takes `Workbench.small_block_size`. backend: another than the
    one under test, with the block size it prefers and the same dtypes. options: further ones of `EngineConfig`. Every
    block has to be given back by the time the context is left without an exception.
    """
    size = block_size or bench.small_block_size
    blocks = 1 + -(-room // size)  # and the null block
    config, layout = bench.config, kv_layout(bench, model, size)
    if backend:
        where: dict[str, Any] = {"backend": backend, "kv_cache_memory": blocks * layout.block_bytes}
    else:
        where = {
            "backend": config.backend,
            "kernel": config.kernel,
            "threads": config.threads,
            "backend_options": config.options,
            "block_size": size,
            "kv_cache_memory": blocks * bench.device.kv_block_bytes(layout),
        }
    llm = LLM(
        model.directory,
        **where,
        dtype=model.spec.dtype.value,
        kv_cache_dtype=layout.dtype.value,
        check_integrity=True,
        sanitize=True,
        warm_up_seconds=0,
        **options,
    )
    try:
        yield llm
        stats = llm.engine.stats()
        bench.require(
            stats.kv_cache_usage == 0.0 and stats.kv_used_slots == 0 and not llm.engine.has_work,
            f"engine: {stats.kv_used_slots} slots of the KV cache are in use after every request has ended.",
        )
    finally:
        llm.close()


def check_results(bench: Workbench, model: TinyModel, results: Sequence[RequestOutput], *, greedy: bool = True) -> None:
    """Each token's reported logprob is transformers', given the tokens before it; where greedy, it is the best token.

    Both are decided position by position with the tokens that came (teacher forcing), so that a near-tie which rounding
    decides the other way does not hide what comes after it.
    """
    for result in results:
        prompt = result.prompt_token_ids
        if result.error is not None:
            raise CaseFailure(f"engine: a request with a prompt of {len(prompt)} tokens failed: {result.error}")
        for output in result.outputs:
            if not output.token_ids:  # aborted before its first
                continue
            where = f"completion {output.index} of {len(result.outputs)}, prompt of {len(prompt)} tokens"
            # Logprobs first: they say by how much, and show NaN.
            if output.logprobs is not None:
                pairs = zip(output.logprobs, output.token_ids, strict=True)
                reported = [entry[token].logprob for entry, token in pairs]
                check_logprobs(bench, model, [*prompt, *output.token_ids], reported, where)
            if greedy:
                _check_best(bench, model, prompt, output, where)


def check_logprobs(
    bench: Workbench, model: TinyModel, token_ids: Sequence[int], reported: Sequence[float], where: str
) -> None:
    """The logprobs of the last tokens of a sequence, each given those before it: as many as were reported."""
    count = len(reported)
    rows = model.logprobs(token_ids)[-count - 1 : -1]
    expected = rows[np.arange(count), np.asarray(token_ids[-count:])]
    # From its row's mean a logprob is a logit. The row's deviation stands beside it, for what one logit is off by is to
    # be seen against them all and not against itself, which may be next to nothing.
    middle, deviation = rows.mean(axis=-1), rows.std(axis=-1)
    allowed = _allowed(bench, model)
    bench.measure(
        "model",
        model.spec.dtype,
        np.stack([np.asarray(reported) - middle, deviation], axis=-1),
        np.stack([expected - middle, deviation], axis=-1),
        f"{_title(model)}: the logprobs of {count} tokens, a row each; {where}",
        extra=DEVIATIONS**2 * allowed - bench.tolerances.of("model", model.spec.dtype),
    )


def near_tie(bench: Workbench, model: TinyModel, logits: np.ndarray) -> float:
    """The largest difference of two logits of such rows that rounding may turn around."""
    return 2.0 * DEVIATIONS * float(np.sqrt(_allowed(bench, model) * np.mean(np.square(logits))))


def _allowed(bench: Workbench, model: TinyModel) -> float:
    return bench.tolerances.of("model", model.spec.dtype) + cache_tolerance(bench, model)


def _title(model: TinyModel) -> str:
    return f"{model.spec.family}, {model.spec.variant}, {model.spec.dtype.value}"


def _check_best(
    bench: Workbench, model: TinyModel, prompt: Sequence[int], output: CompletionOutput, where: str
) -> None:
    shortfalls = model.shortfalls(prompt, output.token_ids)
    rows = model.logits([*prompt, *output.token_ids])[len(prompt) - 1 : -1]
    allowed = near_tie(bench, model, rows)
    wrong = np.flatnonzero(shortfalls > allowed)
    if wrong.size:
        first = int(wrong[0])
        raise CaseFailure(
            f"engine, {_title(model)}: greedy token {first} is {output.token_ids[first]}, and transformers' is "
            f"{int(np.argmax(rows[first]))}, better by {shortfalls[first]:.2g}; up to {allowed:.2g} would be rounding "
            f"({where}; {wrong.size} of {len(output.token_ids)} tokens are wrong)."
        )
