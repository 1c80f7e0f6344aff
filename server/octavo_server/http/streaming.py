"""Server-sent events, and work that ends when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo_server.http.errors import to_api_error

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """Nobody is left to answer."""


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises ClientGoneError then.

    Starlette notices only clients that leave while something is being sent; a request that waits in the queue
    sends nothing.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


class EventStream(Response):
    """Sends each object of `events` as one event, then `[DONE]`.

    Nothing is sent before the first event is there, so a request that is refused gets its status code. A
    later error becomes an event in the API's error format and ends the stream without `[DONE]`: a client that
    waits for that word never takes a cut answer for a whole one.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[object, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGoneError):
            await until_disconnect(receive, self._run(scope, receive, send))

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):  # runs the generator's cleanup even when sending is what was cancelled
            try:
                first = await anext(self._events)
            except Exception as error:
                await to_api_error(error).response()(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _send_part(send, _event(first))
            last = DONE
            try:
                async for event in self._events:
                    await _send_part(send, _event(event))
            except Exception as error:
                last = _event(to_api_error(error).body())
            await send({"type": "http.response.body", "body": last, "more_body": False})


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
    await asyncio.sleep(0)  # where events wait in line, the loop must still see that the client has gone


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
