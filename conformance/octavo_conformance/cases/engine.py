"""Level `engine`: whole generations on tiny models, over memory in which a block that nobody owns holds NaN.

Every generated token is held against transformers (`hostile.engine.check_results`): its choice where it is greedy, and
the logprob that was reported with it, which shows what a choice among many would hide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams
from octavo.backend import DType, UnsupportedError
from octavo.llm import OutputCollector
from octavo.outputs import RequestOutput
from octavo_conformance.case import Case, Needs
from octavo_conformance.hostile.engine import check_logprobs, check_results, near_tie, open_llm
from octavo_conformance.oracles.models import EOS, VARIANTS, VOCABULARY, ModelSpec, TinyModel, tiny_model
from octavo_conformance.workbench import PRECISE, NotClaimed, Workbench

Prompts = Sequence[Sequence[int]]


def cases() -> Iterator[Case]:
    """Parity of every model, then what the engine does with memory."""
    for family, variants in VARIANTS.items():
        for variant in variants:
            yield _case(f"parity/{family},{variant}", partial(_parity, family, variant, None))
    for dtype in PRECISE:
        run = partial(_parity, "llama", "plain", dtype)
        yield _case(f"parity/{dtype.value}", run, Needs(dtypes=(dtype,)), dtype)
    for family, variant in (("llama", "plain"), ("mistral", "window=7")):
        yield _case(f"chunked_prefill/{family},{variant}", partial(_chunked_prefill, family, variant))
        for caching in (True, False):
            name = f"preemption/{family},{variant},{'with' if caching else 'without'}_prefix_cache"
            yield _case(name, partial(_preemption, family, variant, caching))
    yield _case("prefix_cache/shared", _shared_prefix)
    yield _case("prefix_cache/evicted", _evicted_prefix)
    yield _case("prefix_cache/reset", _reset_prefix_cache)
    yield _case("copy_on_write/greedy", _greedy_siblings)
    yield _case("copy_on_write/seeded", _seeded_siblings)
    yield _case("copy_on_write/preempted", _preempted_siblings)
    yield _case("liveness/full_pool", _full_pool)
    yield _case("liveness/abort", _abort)
    yield _case("logprobs/sampled", _logprobs)
    yield _case("logprobs/prompt", _prompt_logprobs)
    yield _case("logits/penalties", _penalties)
    yield _case("stop/eos", _stops)
    yield _case("reopen/closed", _reopen)
    yield _case("tensor_parallel/shards=2", _two_shards, Needs(shards=2))


def _case(
    name: str,
    run: Callable[[Workbench], None],
    needs: Needs = Needs(),  # noqa: B008  # frozen
    dtype: DType | None = None,
) -> Case:
    return Case(id=f"engine/{name}", run=run, needs=needs, dtype=dtype, quick=True, limit=120.0)


# --------------------------------------------------------------------------------------------- prefill and decode


def _parity(family: str, variant: str, dtype: DType | None, bench: Workbench) -> None:
    """Prompts around the borders of blocks, in one batch, on the device's own block size."""
    model = _model(bench, family, variant, dtype)
    size = bench.block_size
    prompts = _prompts(bench, (1, 2, size - 1, size, size + 1, 2 * size + 5, 7))
    with open_llm(bench, model, room=16 * max(size, 16), block_size=size) as llm:
        _generate(bench, model, llm, prompts, _greedy(16))


def _chunked_prefill(family: str, variant: str, bench: Workbench) -> None:
    """Long prompts in chunks of a few tokens beside running decodes."""
    span = _span(bench)
    model = _model(bench, family, variant)
    prompts = _prompts(bench, (3, 5 * span + 2, 3 * span, 4 * span + 1, 2))
    options: dict[str, Any] = {"max_num_batched_tokens": 7, "max_num_seqs": 4}
    with open_llm(bench, model, room=64 * span, **options) as llm:
        _generate(bench, model, llm, prompts, _greedy(10))
        steps = llm.engine.stats().steps
    least = -(-sum(map(len, prompts)) // 7)
    bench.require(steps >= least, f"engine: {steps} steps for prompts that need {least} at 7 tokens a step.")


def _preemption(family: str, variant: str, caching: bool, bench: Workbench) -> None:
    """More requests than the pool holds once they grow: they lose their blocks and compute them again."""
    span = _span(bench)
    model = _model(bench, family, variant)
    prompts = _prompts(bench, (2 * span - 1,) * 6)
    # Tokens enough that all run at once.
    options: dict[str, Any] = {"enable_prefix_caching": caching, "max_num_batched_tokens": 64 + 12 * span}
    with open_llm(bench, model, room=12 * span, **options) as llm:
        _generate(bench, model, llm, prompts, _greedy(min(2 * span, 12)))
        _require_preemptions(bench, llm)


# --------------------------------------------------------------------------------------------------- sharing blocks


def _shared_prefix(bench: Workbench) -> None:
    """Prompts that start alike and part in the middle of a block: the full blocks are shared, the rest is not."""
    span, size = _span(bench), bench.small_block_size
    model = _model(bench)
    common = bench.rng.integers(0, VOCABULARY, 2 * span + span // 2).tolist()
    first, *others = ([*common, *tail] for tail in _prompts(bench, (3, 1, span, 2 * span + 1)))
    with open_llm(bench, model, room=48 * span) as llm:
        _generate(bench, model, llm, [first], _greedy(6))
        results = _generate(bench, model, llm, others, _greedy(10))
        for result in results:
            cached = result.metrics.num_cached_tokens if result.metrics else 0
            expected = len(common) // size * size
            bench.require(cached == expected, f"engine: {cached} tokens came from the prefix cache, not {expected}.")
        # The whole prompt is cached now, and where its last block is full, all but that.
        _generate(bench, model, llm, [first, others[1]], _greedy(10))


def _evicted_prefix(bench: Workbench) -> None:
    """Cached blocks are taken by others, and the prompt that they held comes again."""
    span = _span(bench)
    model = _model(bench)
    prompts = _prompts(bench, (3 * span + 1,) * 5)
    with open_llm(bench, model, room=10 * span) as llm:
        for prompt in (*prompts, *prompts[::-1]):
            _generate(bench, model, llm, [prompt], _greedy(5))
        bench.require(llm.engine.stats().prefix_cache_hits > 0, "engine: no prompt was found in the prefix cache.")


def _reset_prefix_cache(bench: Workbench) -> None:
    """What was cached is forgotten, and is NaN from then on."""
    span = _span(bench)
    model = _model(bench)
    prompts = _prompts(bench, (2 * span + 1, 3 * span))
    with open_llm(bench, model, room=16 * span) as llm:
        _generate(bench, model, llm, prompts, _greedy(4))
        llm.engine.reset_prefix_cache()
        results = _generate(bench, model, llm, prompts, _greedy(8))
        bench.require(
            all(result.metrics is not None and result.metrics.num_cached_tokens == 0 for result in results),
            "engine: a prompt was found in a prefix cache that was reset.",
        )


def _greedy_siblings(bench: Workbench) -> None:
    """Completions that share a partly filled block all write into it: each needs a copy of its own."""
    span = _span(bench)
    model = _model(bench)
    prompts = _prompts(bench, (2 * span + span // 2, span - 1))
    with open_llm(bench, model, room=48 * span) as llm:
        _generate(bench, model, llm, prompts, _greedy(span + 2, n=3))


def _seeded_siblings(bench: Workbench) -> None:
    """Siblings that part at once: what one writes into a shared block would be another's past."""
    span = _span(bench)
    model = _model(bench)
    prompts = _prompts(bench, (2 * span + span // 2, span - 1, 2 * span))
    params = [_params(temperature=1.0, seed=seed, n=4, max_tokens=2 * span + 1) for seed in range(3)]
    with open_llm(bench, model, room=64 * span) as llm:
        results = _generate(bench, model, llm, prompts, params, greedy=False)
    for result in results:
        drawn = {tuple(output.token_ids) for output in result.outputs}
        bench.require(len(drawn) == 4, "engine: siblings of n=4 draw the same tokens.")


def _preempted_siblings(bench: Workbench) -> None:
    """Siblings in a pool that cannot hold them: shared blocks are given up by some of their holders only."""
    span = _span(bench)
    model = _model(bench)
    prompts = _prompts(bench, (span + span // 2,) * 4)
    params = [_params(temperature=1.0, seed=seed, n=3, max_tokens=min(2 * span, 12)) for seed in range(4)]
    with open_llm(bench, model, room=10 * span) as llm:
        _generate(bench, model, llm, prompts, params, greedy=False)
        _require_preemptions(bench, llm)


# --------------------------------------------------------------------------------------------------------- liveness


def _full_pool(bench: Workbench) -> None:
    """Many requests of all sizes through a pool that holds few of them: all finish, each with all its tokens."""
    span = _span(bench)
    model = _model(bench)
    lengths = bench.rng.integers(1, 3 * span + 1, 20).tolist()
    params = [_params(n=1 + index % 3, max_tokens=1 + index % 11) for index in range(len(lengths))]
    with open_llm(bench, model, room=9 * span, max_num_seqs=8, max_num_batched_tokens=24) as llm:
        results = _generate(bench, model, llm, _prompts(bench, lengths), params)
        finished = llm.engine.stats().requests_finished
    for result, own in zip(results, params, strict=True):
        counts = {len(output.token_ids) for output in result.outputs}
        bench.require(counts == {own.max_tokens}, f"engine: {counts} tokens came, {own.max_tokens} were asked for.")
    bench.require(finished == {"length": len(lengths)}, f"engine: the requests ended as {finished}.")


def _abort(bench: Workbench) -> None:
    """Requests are aborted while they wait, prefill, decode and share blocks; the others do not feel it."""
    span = _span(bench)
    model = _model(bench)
    lengths = bench.rng.integers(1, 4 * span, 12).tolist()
    aborted = {1: "2", 3: "0", 6: "5", 10: "11"}  # by the step after which it happens
    with open_llm(bench, model, room=12 * span, max_num_seqs=8, max_num_batched_tokens=16) as llm:
        engine, collectors = llm.engine, {}
        for index, prompt in enumerate(_prompts(bench, lengths)):
            params = _params(n=1 + index % 2, max_tokens=12)
            request = engine.processor.process(str(index), prompt, params)
            engine.add(request)
            collectors[request.request_id] = OutputCollector(request)
        steps = 0
        while engine.has_work and steps < 1000:
            for update in engine.step():
                collectors[update.request_id].add(update)
            if steps in aborted:
                engine.abort(aborted[steps])
            steps += 1
        bench.require(not engine.has_work, "engine: requests are left after 1,000 steps.")
    results = [collector.output for collector in collectors.values()]
    bench.require(all(result.finished for result in results), "engine: a request never ended.")
    check_results(bench, model, results)


# ------------------------------------------------------------------------------------------ logits, logprobs, stops


def _logprobs(bench: Workbench) -> None:
    """The most likely tokens beside each chosen one, their logprobs and ranks."""
    model = _model(bench)
    with open_llm(bench, model) as llm:
        results = _generate(bench, model, llm, _prompts(bench, (5, 9)), _greedy(8, logprobs=5))
    for result in results:
        output = result.outputs[0]
        rows = model.logprobs([*result.prompt_token_ids, *output.token_ids])[len(result.prompt_token_ids) - 1 : -1]
        slack = near_tie(bench, model, model.logits(result.prompt_token_ids))
        for row, entry in zip(rows, output.logprobs or [], strict=True):
            best = np.sort(row)[::-1][:5]
            got = sorted((logprob.logprob for logprob in entry.values()), reverse=True)[:5]
            wrong = max(abs(row[token] - logprob.logprob) for token, logprob in entry.items())
            bench.require(
                wrong <= slack and bool(np.all(np.abs(best - got) <= slack)),
                f"engine: the five best logprobs are {[f'{value:.4f}' for value in got]}, transformers has "
                f"{[f'{value:.4f}' for value in best]}.",
            )


def _prompt_logprobs(bench: Workbench) -> None:
    """Logprobs of a prompt that is prefilled in chunks, after the prefix cache holds it."""
    span = _span(bench)
    model = _model(bench)
    prompts = _prompts(bench, (3 * span + 1, 2 * span))
    with open_llm(bench, model, room=32 * span, max_num_batched_tokens=5, max_num_seqs=4) as llm:
        _generate(bench, model, llm, prompts, _greedy(2))
        results = _generate(bench, model, llm, prompts, _greedy(2, prompt_logprobs=0))
    for result in results:
        tokens, entries = result.prompt_token_ids, result.prompt_logprobs or []
        bench.require(len(entries) == len(tokens), f"engine: {len(entries)} of {len(tokens)} prompt logprobs came.")
        reported = [(entry or {})[token].logprob for token, entry in zip(tokens[1:], entries[1:], strict=True)]
        check_logprobs(bench, model, tokens, reported, "prompt logprobs")


def _penalties(bench: Workbench) -> None:
    """Greedy choices under bias and penalties, which edit a few of a row's logits."""
    model = _model(bench)
    params = _params(
        max_tokens=16, frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=1.3, logit_bias={7: 1.0, 9: -3.0}
    )
    with open_llm(bench, model) as llm:
        results = _generate(bench, model, llm, _prompts(bench, (4, 11)), params, greedy=False)
    for result in results:
        prompt, output = result.prompt_token_ids, result.outputs[0].token_ids
        for index, token in enumerate(output):
            row = model.logits([*prompt, *output])[len(prompt) - 1 + index].copy()
            slack = 2.0 * near_tie(bench, model, row)
            row[7] += 1.0
            row[9] -= 3.0
            seen = sorted({*prompt, *output[:index]})
            row[seen] = np.where(row[seen] > 0.0, row[seen] / 1.3, row[seen] * 1.3)
            counts = np.bincount(output[:index], minlength=len(row))
            row -= 1.5 * counts + 0.5 * (counts > 0)
            best = int(np.argmax(row))
            missing = float(row[best] - row[token])
            bench.require(
                missing <= slack,
                f"engine: token {index} under penalties is {token}, and {best} is better by {missing:.2g}; up to "
                f"{slack:.2g} would be rounding.",
            )


def _stops(bench: Workbench) -> None:
    """A completion ends at the end-of-sequence token, at a stop token, and at its length."""
    model = _model(bench)
    prompt = _prompts(bench, (6,))[0]
    with open_llm(bench, model, enable_prefix_caching=False) as llm:  # every run has the same steps
        free = _generate(bench, model, llm, [prompt], _greedy(12))[0].outputs[0].token_ids
        stop = free[5]
        runs = {
            "stop token": (_params(max_tokens=12, stop_token_ids=(stop,)), free[: free.index(stop) + 1], "stop"),
            "length": (_params(max_tokens=1), free[:1], "length"),
            "end": (_params(max_tokens=12, ignore_eos=False, logit_bias={EOS: 100.0}), [EOS], "stop"),
        }
        for name, (params, tokens, reason) in runs.items():
            output = _generate(bench, model, llm, [prompt], params, greedy=False)[0].outputs[0]
            bench.require(
                output.token_ids == tokens and output.finish_reason == reason,
                f"engine: a completion that ends at its {name} has the tokens {output.token_ids} and ended as "
                f"{output.finish_reason!r}; {tokens} and {reason!r} were expected.",
            )


def _reopen(bench: Workbench) -> None:
    """An engine is closed and another one opens, with another model and another cache."""
    span = _span(bench)
    for family, room in (("llama", 16), ("qwen3", 24), ("llama", 12)):
        model = _model(bench, family)
        with open_llm(bench, model, room=room * span) as llm:
            _generate(bench, model, llm, _prompts(bench, (span, 2 * span + 1)), _greedy(6))


def _two_shards(bench: Workbench) -> None:
    """A model that two shards share, where both are in one process: a mesh. Its heads are split and its vocabulary is
    not, which is odd.
    """
    try:
        device = bench.open(replace(bench.config, tensor_parallel_size=2))
    except UnsupportedError as error:
        raise NotClaimed(f"two shards in one process are not possible: {error}") from error
    device.close()
    span = _span(bench)
    model = _model(bench, "llama", "tied")
    prompts = _prompts(bench, (1, span - 1, span, 2 * span + 1, 5))
    with open_llm(bench, model, room=48 * span, tensor_parallel_size=2, max_num_batched_tokens=64) as llm:
        _generate(bench, model, llm, prompts, _greedy(12))
        siblings = _params(n=3, temperature=1.0, seed=5, max_tokens=span + 2)  # blocks are copied on each shard
        _generate(bench, model, llm, prompts, siblings, greedy=False)


# ------------------------------------------------------------------------------------------------------ ingredients


def _model(bench: Workbench, family: str = "llama", variant: str = "plain", dtype: DType | None = None) -> TinyModel:
    return tiny_model(ModelSpec(family, variant, dtype or bench.dtype, bench.head_size))


def _span(bench: Workbench) -> int:
    """Tokens that end with a block; a few blocks where they are tiny."""
    size = bench.small_block_size
    return size * -(-4 // size)


def _prompts(bench: Workbench, lengths: Sequence[int]) -> list[list[int]]:
    return [bench.rng.integers(0, VOCABULARY, max(1, length)).tolist() for length in lengths]


def _params(**options: Any) -> SamplingParams:
    """Greedy unless a temperature is given, with the logprob of each token that is chosen."""
    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "logprobs": 0, **options})


def _greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return _params(max_tokens=max_tokens, **options)


def _generate(
    bench: Workbench,
    model: TinyModel,
    llm: LLM,
    prompts: Prompts,
    params: SamplingParams | Sequence[SamplingParams],
    greedy: bool = True,
) -> list[RequestOutput]:
    """Results in the order of the prompts, checked against the oracle."""
    results = llm.generate([list(prompt) for prompt in prompts], params, use_tqdm=False)
    check_results(bench, model, results, greedy=greedy)
    return results


def _require_preemptions(bench: Workbench, llm: LLM) -> None:
    bench.require(llm.engine.stats().num_preemptions > 0, "engine: nothing was preempted: the case proves nothing.")
