"""What the routes share: the engine, the tokenizer, the metrics, and whether new work is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from octavo.loading import EngineInfo
from octavo.models.tokenizer import Tokenizer
from octavo.outputs import RequestUpdate
from octavo.processor import EngineRequest, Limits, RequestProcessor
from octavo_server.engine_client import EngineClient
from octavo_server.http.errors import ApiError, shown
from octavo_server.metrics import Metrics
from octavo_server.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


class Service:
    """One served model. Owned by `octavo serve`; the routes hold a reference."""

    def __init__(self, settings: Settings, client: EngineClient, info: EngineInfo, tokenizer: Tokenizer) -> None:
        self.settings = settings
        self.client = client
        self.info = info
        self.tokenizer = tokenizer
        self.processor = RequestProcessor(
            tokenizer,
            Limits(info.max_model_len, info.vocab_size, info.max_num_seqs),
        )
        self.metrics = Metrics(settings.model_names[0], lambda: client.stats)
        self.draining = False
        self.in_flight = 0  # requests not answered to the end
        self.started = time.time()
        client.on_step = self.metrics.observe_step
        # One worker: a tokenizer is not safe to share between threads, and the event loop must stay free.
        self._tokenizing = ThreadPoolExecutor(1, "octavo-tokenizer")

    def model_name(self, asked: str | None) -> str:
        """The name to show for what a client asked for. Raises ApiError 404."""
        names = self.settings.model_names
        if asked is None:
            return names[0]
        if asked not in names:
            raise ApiError(
                404,
                f"There is no model {shown(asked)} here; this server has: {', '.join(names)}.",
                param="model",
                code="model_not_found",
            )
        return asked

    def require_accepting(self) -> None:
        """Raises ApiError 503 while the server shuts down or after its engine died."""
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down", headers={"Retry-After": "5"})
        if self.client.died.done():
            raise ApiError(503, self.client.died.result(), code="engine_dead")

    async def tokenizing(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work`, which uses the tokenizer, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, lambda: work(*args, **kwargs))

    @asynccontextmanager
    async def run(self, requests: Sequence[EngineRequest]) -> AsyncIterator[AsyncIterator[RequestUpdate]]:
        """The updates of `requests`, measured; leaving the context aborts what has not finished."""
        meters = {request.request_id: self.metrics.meter(request) for request in requests}

        async def measured(updates: AsyncIterator[RequestUpdate]) -> AsyncIterator[RequestUpdate]:
            async for update in updates:
                meters[update.request_id].observe(update)
                yield update

        async with self.client.open(requests) as updates:
            yield measured(updates)

    def close(self) -> None:
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
