"""/v1/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace

from msgspec import UNSET

from octavo.outputs import TokenLogprobs
from octavo.processor import EngineRequest
from octavo.sampling.params import SamplingParams
from octavo_server.api.choices import Choice, UsageCounter
from octavo_server.api.logprobs import CompletionLogprobsBuilder
from octavo_server.api.requests import DEFAULT_COMPLETION_TOKENS, CompletionRequest, Prompt, parse
from octavo_server.api.responses import Completion, CompletionChoice, CompletionLogprobs, Usage
from octavo_server.service import Service

PromptLogprobs = tuple[TokenLogprobs | None, ...]


class Completions:
    """One HTTP request, a list of prompts; checked when made by `prepare`, then either `complete`d or
    `stream`ed.

    Choice `i * n + j` is completion j of prompt i, as the API numbers them.
    """

    def __init__(
        self,
        service: Service,
        asked: CompletionRequest,
        requests: list[EngineRequest],
        echoes: list[str],
        model: str,
    ) -> None:
        self._service = service
        self._asked = asked
        self._requests = requests
        self._echoes = echoes  # by prompt; "" where nothing is echoed
        self._model = model
        self._created = int(time.time())
        self._id = requests[0].request_id.rpartition("-")[0]
        self._position = {request.request_id: index for index, request in enumerate(requests)}
        self._n = requests[0].params.n

    @property
    def streamed(self) -> bool:
        return bool(self._asked.stream)

    @classmethod
    async def prepare(cls, service: Service, body: dict[str, object]) -> Completions:
        """Raises ApiError or InvalidRequestError."""
        asked = parse(body, CompletionRequest)
        model = service.model_name(asked.model)
        prompts, params = asked.prompts(), asked.params()
        requests, echoes = await service.tokenizing(_process, service, asked, prompts, params)
        return cls(service, asked, requests, echoes, model)

    async def complete(self) -> Completion:
        choices = [Choice() for _ in range(len(self._requests) * self._n)]
        prompt_logprobs: dict[int, PromptLogprobs] = {}
        counter = UsageCounter(self._requests)
        async with self._service.run(self._requests) as updates:
            async for update in updates:
                counter.add(update)
                prompt = self._position[update.request_id]
                if update.prompt_logprobs is not None:
                    prompt_logprobs[prompt] = update.prompt_logprobs
                for sequence in update.sequences:
                    choices[prompt * self._n + sequence.index].add(sequence)
        return self._answer(
            *(
                CompletionChoice(
                    index,
                    self._echoes[index // self._n] + "".join(choice.text),
                    self._logprobs(
                        CompletionLogprobsBuilder(),
                        index // self._n,
                        (*prompt_logprobs.get(index // self._n, ()), *choice.logprobs),
                    ),
                    choice.finish_reason,
                    choice.stop_reason,
                )
                for index, choice in enumerate(choices)
            ),
            usage=counter.usage(),
            with_usage=True,
        )

    async def stream(self) -> AsyncGenerator[Completion, None]:
        """Chunks of text, the echoed prompt first, and if asked for a last one with the usage."""
        counter = UsageCounter(self._requests)
        builders: dict[int, CompletionLogprobsBuilder] = {}
        prompt_logprobs: dict[int, PromptLogprobs] = {}
        async with self._service.run(self._requests) as updates:
            async for update in updates:
                counter.add(update)
                prompt = self._position[update.request_id]
                if update.prompt_logprobs is not None:
                    prompt_logprobs[prompt] = update.prompt_logprobs
                for sequence in update.sequences:
                    index = prompt * self._n + sequence.index
                    text, logprobs = sequence.text, sequence.logprobs
                    first = index not in builders
                    builder = builders.setdefault(index, CompletionLogprobsBuilder())
                    if first:
                        text = self._echoes[prompt] + text
                    tokens = (*prompt_logprobs.get(prompt, ()), *logprobs) if first else logprobs
                    if text or sequence.finish_reason is not None or (self._asked.logprobs is not None and tokens):
                        yield self._answer(
                            CompletionChoice(
                                index,
                                text,
                                self._logprobs(builder, prompt, tokens),
                                sequence.finish_reason,
                                sequence.stop_reason,
                            ),
                            with_usage=self._asked.include_usage,
                        )
        if self._asked.include_usage:
            yield self._answer(usage=counter.usage(), with_usage=True)

    def _answer(self, *choices: CompletionChoice, usage: Usage | None = None, with_usage: bool) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=list(choices),
            usage=usage if with_usage else UNSET,
        )

    def _logprobs(
        self, builder: CompletionLogprobsBuilder, prompt: int, tokens: PromptLogprobs
    ) -> CompletionLogprobs | None:
        if self._asked.logprobs is None:
            return None
        first_token = self._service.tokenizer.token_text(self._requests[prompt].prompt_token_ids[0])
        return builder.build(tokens, first_token)


def _process(
    service: Service, asked: CompletionRequest, prompts: list[Prompt], params: SamplingParams
) -> tuple[list[EngineRequest], list[str]]:
    """The engine's requests, and the text to echo for each."""
    identity = f"cmpl-{uuid.uuid4().hex}"
    requests = []
    for index, prompt in enumerate(prompts):
        request = service.processor.process(
            f"{identity}-{index}",
            prompt,
            params,
            priority=asked.priority or 0,
            cache_salt=asked.cache_salt or "",
        )
        requests.append(request if asked.max_tokens is not None else _with_default_length(request))
    echoes = [
        "" if not asked.echo else prompt if isinstance(prompt, str) else service.tokenizer.decode(prompt)
        for prompt in prompts
    ]
    return requests, echoes


def _with_default_length(request: EngineRequest) -> EngineRequest:
    """The API's default, or less where the prompt leaves less room."""
    room = request.params.max_tokens or DEFAULT_COMPLETION_TOKENS
    length = min(room, max(DEFAULT_COMPLETION_TOKENS, request.params.min_tokens))
    return replace(request, params=replace(request.params, max_tokens=length))
