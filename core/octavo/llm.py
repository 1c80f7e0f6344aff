"""Offline use: a list of prompts in, a list of results out."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from octavo.config import EngineConfig
from octavo.engine import Engine, EngineDeadError
from octavo.errors import InvalidRequestError
from octavo.models.tokenizer import Tokenizer
from octavo.outputs import CompletionOutput, Logprob, RequestOutput, RequestUpdate, TokenLogprobs
from octavo.processor import EngineRequest
from octavo.sampling.params import SamplingParams
from octavo.scheduling import FinishReason

_log = logging.getLogger(__name__)

Prompt = str | Sequence[int]


class LLM:
    """A model, ready to generate. The arguments are those of `EngineConfig`.

        llm = LLM("demo")
        for result in llm.generate(["The capital of France is"], SamplingParams(temperature=0.0, max_tokens=8)):
            print(result.outputs[0].text)

    Raises OctavoError or octavo.backend.BackendError, each a sentence.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "demo",
        *,
        backend: str = "auto",
        kernel: str = "auto",
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        kv_cache_memory: int | str | None = None,
        gpu_memory_utilization: float = 0.9,
        block_size: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        max_waiting: int = 1024,
        enable_prefix_caching: bool = True,
        tensor_parallel_size: int = 1,
        threads: int | None = None,
        seed: int = 0,
        check_integrity: bool = False,
        sanitize: bool = False,
        warm_up_seconds: float = 20.0,
        backend_options: Mapping[str, str] | None = None,
    ) -> None:
        config = EngineConfig(
            model=os.fspath(model),
            backend=backend,
            kernel=kernel,
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max_model_len,
            kv_cache_memory=kv_cache_memory,
            gpu_memory_utilization=gpu_memory_utilization,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_waiting=max_waiting,
            enable_prefix_caching=enable_prefix_caching,
            tensor_parallel_size=tensor_parallel_size,
            threads=threads,
            seed=seed,
            check_integrity=check_integrity,
            sanitize=sanitize,
            warm_up_seconds=warm_up_seconds,
            backend_options=backend_options or {},
        )
        with _loading() as progress:
            self.engine = Engine.from_config(config, progress)
        self._numbers = itertools.count()

    def close(self) -> None:
        """Give back the device's memory, for instance before another model is loaded."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt, text or token ids; results in the order of the prompts.

        params: one for all, one for each, or None for the defaults. use_tqdm: show a progress bar; None shows one for
        more than one prompt on a terminal. Raises InvalidRequestError before anything runs if any prompt cannot.

        A prompt that fails ends with the finish reason "error" and a sentence in `RequestOutput.error`; the others are
        completed. Where the device is lost all that are unfinished end so, and later calls raise
        octavo.engine.EngineDeadError with the same sentence.
        """
        batch: list[Prompt] = [prompts] if _is_one(prompts) else list(prompts)  # type: ignore[list-item,arg-type]
        chosen = self._params(params, len(batch))
        ranks = list(priority) if priority is not None else [0] * len(batch)
        if len(ranks) != len(batch):
            raise InvalidRequestError(f"There are {len(batch)} prompts and {len(ranks)} priorities.", param="priority")
        requests = [
            self.engine.processor.process(self._next_id(), prompt, own, priority=rank)
            for prompt, own, rank in zip(batch, chosen, ranks, strict=True)
        ]
        return self._run(requests, use_tqdm)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, through the checkpoint's chat template."""
        one = not messages or isinstance(messages[0], Mapping)
        batch: list[Any] = [messages] if one else list(messages)
        requests = [
            self.engine.processor.process_chat(
                self._next_id(), conversation, own, chat_template_kwargs=chat_template_kwargs
            )
            for conversation, own in zip(batch, self._params(params, len(batch)), strict=True)
        ]
        return self._run(requests, use_tqdm)

    # ---------------------------------------------------------------------------------------------------- details

    def _next_id(self) -> str:
        return str(next(self._numbers))

    def _params(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if len(params) != count:
            raise InvalidRequestError(f"There are {count} prompts and {len(params)} sampling parameters.")
        return params

    def _run(self, requests: Sequence[EngineRequest], use_tqdm: bool | None) -> list[RequestOutput]:
        self.engine.check_alive()  # nothing would run: an error for each prompt would be less clear
        collectors = {request.request_id: OutputCollector(request) for request in requests}
        unfinished = set(collectors)
        waiting = iter(requests)
        try:
            with _progress(len(requests), use_tqdm) as advance:
                while unfinished:
                    # The queue is bounded, so a long list is fed as the engine drains it.
                    for request in itertools.islice(waiting, self.engine.queue_room):
                        self.engine.add(request)
                    for update in self.engine.step():
                        collectors[update.request_id].add(update)
                        if update.finished:
                            unfinished.remove(update.request_id)
                            advance()
        except EngineDeadError as error:
            _log.error("%d of %d requests end with an error. %s", len(unfinished), len(requests), error)
            for request_id in unfinished:
                collectors[request_id].fail(str(error))
            unfinished.clear()
        finally:
            # Interrupted: what still runs must not come up in the next call.
            for request_id in unfinished:
                self.engine.abort(request_id)
            if unfinished:
                self.engine.step()
        return [collectors[request.request_id].output for request in requests]


class OutputCollector:
    """Folds a request's updates into its `RequestOutput`."""

    def __init__(self, request: EngineRequest) -> None:
        self._with_logprobs = request.params.logprobs is not None
        self.output = RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=list(request.prompt_token_ids),
            outputs=[CompletionOutput(index) for index in range(request.params.n)],
        )

    def add(self, update: RequestUpdate) -> None:
        """Take one update."""
        if update.prompt_logprobs is not None:
            self.output.prompt_logprobs = [
                None if entry is None else _as_dict(entry) for entry in update.prompt_logprobs
            ]
        for part in update.sequences:
            completion = self.output.outputs[part.index]
            completion.text += part.text
            completion.token_ids.extend(part.token_ids)
            completion.finish_reason = part.finish_reason
            completion.stop_reason = part.stop_reason
            if self._with_logprobs:
                completion.logprobs = (completion.logprobs or []) + [_as_dict(entry) for entry in part.logprobs]
                gained = sum(entry.logprob.logprob for entry in part.logprobs)
                completion.cumulative_logprob = (completion.cumulative_logprob or 0.0) + gained
        self.output.error = update.error
        self.output.finished = update.finished
        self.output.metrics = update.metrics or self.output.metrics

    def fail(self, error: str) -> None:
        """End what is unfinished, for a reason that the engine has no update for any more."""
        for completion in self.output.outputs:
            completion.finish_reason = completion.finish_reason or FinishReason.ERROR.value
        self.output.error = error
        self.output.finished = True


def _as_dict(entry: TokenLogprobs) -> dict[int, Logprob]:
    return {entry.token_id: entry.logprob, **dict(entry.top)}


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))


@contextmanager
def _loading() -> Iterator[Callable[[str, float], None]]:
    """A bar over what is fetched and loaded, on stderr if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, visible=False)
        yield lambda stage, fraction: bar.update(task, description=stage, completed=fraction, visible=True)


@contextmanager
def _progress(total: int, wanted: bool | None) -> Iterator[Callable[[], None]]:
    """A bar over finished requests, on stderr; gives the function that advances it."""
    console = Console(stderr=True)
    show = (total > 1 and console.is_terminal) if wanted is None else wanted
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not show) as bar:
        task = bar.add_task("requests", total=total)
        yield lambda: bar.advance(task)
