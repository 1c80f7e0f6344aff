"""/v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence

from msgspec import UNSET

from octavo.errors import InvalidRequestError
from octavo.outputs import TokenLogprobs
from octavo.processor import EngineRequest
from octavo_server.api.choices import Choice, UsageCounter
from octavo_server.api.logprobs import chat_logprobs
from octavo_server.api.messages import plain_messages
from octavo_server.api.requests import ChatCompletionRequest, parse
from octavo_server.api.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Usage,
)
from octavo_server.service import Service


class Chat:
    """One request: checked when made by `prepare`, then either `complete`d or `stream`ed."""

    def __init__(self, service: Service, asked: ChatCompletionRequest, request: EngineRequest, model: str) -> None:
        self._service = service
        self._asked = asked
        self._request = request
        self._model = model
        self._created = int(time.time())

    @property
    def streamed(self) -> bool:
        return bool(self._asked.stream)

    @classmethod
    async def prepare(cls, service: Service, body: dict[str, object]) -> Chat:
        """Raises ApiError or InvalidRequestError."""
        asked = parse(body, ChatCompletionRequest)
        model = service.model_name(asked.model)
        try:
            request = await service.tokenizing(
                service.processor.process_chat,
                f"chatcmpl-{uuid.uuid4().hex}",
                plain_messages(asked.messages),
                asked.params(),
                priority=asked.priority or 0,
                cache_salt=asked.cache_salt or "",
                chat_template_kwargs=asked.chat_template_kwargs,
            )
        except InvalidRequestError as error:
            if error.param == "max_tokens" and asked.max_completion_tokens is not None:
                error.param = "max_completion_tokens"  # the field as this client wrote it
            raise
        return cls(service, asked, request, model)

    async def complete(self) -> ChatCompletion:
        choices = [Choice() for _ in range(self._request.params.n)]
        counter = UsageCounter([self._request])
        async with self._service.run([self._request]) as updates:
            async for update in updates:
                counter.add(update)
                for sequence in update.sequences:
                    choices[sequence.index].add(sequence)
        return ChatCompletion(
            id=self._request.request_id,
            created=self._created,
            model=self._model,
            choices=[
                ChatChoice(
                    index,
                    ChatMessage("".join(choice.text)),
                    self._logprobs(choice.logprobs),
                    choice.finish_reason,
                    choice.stop_reason,
                )
                for index, choice in enumerate(choices)
            ],
            usage=counter.usage(),
        )

    async def stream(self) -> AsyncGenerator[ChatChunk, None]:
        """Chunks: the role, text, the finish reason, and the usage if it was asked for."""
        counter = UsageCounter([self._request])
        started: set[int] = set()
        async with self._service.run([self._request]) as updates:
            async for update in updates:
                counter.add(update)
                for sequence in update.sequences:
                    if sequence.index not in started:
                        started.add(sequence.index)
                        yield self._chunk(ChatChunkChoice(sequence.index, ChatDelta("assistant", "")))
                    if sequence.text or (self._asked.logprobs and sequence.logprobs):
                        logprobs = self._logprobs(sequence.logprobs)
                        yield self._chunk(ChatChunkChoice(sequence.index, ChatDelta(content=sequence.text), logprobs))
                    if sequence.finish_reason is not None:
                        yield self._chunk(
                            ChatChunkChoice(
                                sequence.index,
                                ChatDelta(),
                                finish_reason=sequence.finish_reason,
                                stop_reason=sequence.stop_reason,
                            )
                        )
        if self._asked.include_usage:
            yield self._chunk(usage=counter.usage())

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self._service.tokenizer.token_bytes) if self._asked.logprobs else None

    def _chunk(self, *choices: ChatChunkChoice, usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._request.request_id,
            created=self._created,
            model=self._model,
            choices=list(choices),
            usage=usage if self._asked.include_usage else UNSET,
        )
