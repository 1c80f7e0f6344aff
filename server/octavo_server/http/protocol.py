"""HTTP/1.1 connections that cannot be held open for nothing.

uvicorn bounds the size of headers and the time between requests, but a connection that sends no request, or sends one
slower than any client would, costs it a file descriptor for ever.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_TIMEOUT = 10.0  # seconds in which a connection's next request must have been read, its body aside


def max_connections() -> int:
    """Half the files this process may open: the rest is for the engine's sockets, the model and the log."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(soft // 2, 4096))


class Protocol(H11Protocol):
    """Closes a connection whose request does not come in time, and refuses more connections than it can serve."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            transport.abort()
        else:
            self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _should_upgrade(self) -> bool:
        return False  # there is nothing to upgrade to, and uvicorn would log advice for each attempt

    def _expect_request(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEADER_TIMEOUT, self._late)

    def _late(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
