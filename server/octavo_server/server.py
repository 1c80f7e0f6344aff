"""The server's life: bind, load, serve, and end: told to, told twice, or because the engine died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import uvicorn

from octavo.errors import ConfigError
from octavo.loading import EngineInfo
from octavo.models.resolve import resolve_model
from octavo.models.tokenizer import load_tokenizer
from octavo_server.engine_client import EngineClient, EngineDeadError, engine_client
from octavo_server.health import Heartbeat
from octavo_server.http.app import build_app
from octavo_server.http.errors import ApiError
from octavo_server.http.protocol import Protocol
from octavo_server.listen import bind, url
from octavo_server.progress import LoadingProgress
from octavo_server.report import describe
from octavo_server.service import Service
from octavo_server.settings import Settings

T = TypeVar("T")

logger = logging.getLogger(__name__)

LAST_ANSWERS = 1.0  # seconds in which /health still says why, after the engine has died
MAX_HEADER_BYTES = 32 * 1024


async def serve(settings: Settings) -> int:
    """Serve until told to stop. Returns the exit code; raises OctavoError when it cannot start."""
    config = settings.engine_config()
    listening = bind(settings)
    stop = _StopSignal()
    heartbeat = Heartbeat(settings.health_timeout, settings.step_timeout, settings.engine_timeout)
    try:
        async with contextlib.AsyncExitStack() as stack:
            with LoadingProgress() as progress:
                files = await stop.unless_stopped(asyncio.to_thread(resolve_model, settings.model, progress))
                client = await stack.enter_async_context(engine_client(heartbeat, progress, settings.log_level))
                stop.on_second = client.kill
                building = asyncio.ensure_future(client.build(config))
                tokenizer = await stop.unless_stopped(asyncio.to_thread(load_tokenizer, files))
                info = await stop.unless_stopped(building)
            return await _serve(Service(settings, client, info, tokenizer), listening, stop)
    except _StoppedError:
        os._exit(0)  # a thread that downloads or reads a model cannot be cancelled, and would be waited for
    except EngineDeadError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return 1
    finally:
        listening.close()
        if settings.uds:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(settings.uds)


async def _serve(service: Service, listening: socket.socket, stop: _StopSignal) -> int:
    settings, client = service.settings, service.client
    try:
        listening.listen(2048)
    except OSError:
        raise ConfigError(f"{url(listening)} was taken by another server while the model loaded.") from None
    server = _Server(
        uvicorn.Config(
            build_app(service),
            http=Protocol,  # h11, the parser that bounds headers, with bounds on time and connections
            proxy_headers=False,  # nothing here depends on who the client says it is
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=settings.log_level == "debug",
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    )
    _announce(service.info, listening, settings)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait((serving, stopped, client.died), return_when=asyncio.FIRST_COMPLETED)
    if stopped.done() and not client.died.done():
        await _drain(service, client)
    code = 0
    if client.died.done():
        code = 1
        print(f"octavo: {client.died.result()} The server stops.", file=sys.stderr, flush=True)
        await asyncio.sleep(LAST_ANSWERS)
    stopped.cancel()
    server.should_exit = True
    await serving
    service.close()
    return code


async def _drain(service: Service, client: EngineClient) -> None:
    """Refuse new requests, give the running ones `shutdown_timeout` seconds, end the rest with an error."""
    service.draining = True
    timeout = service.settings.shutdown_timeout
    print(
        f"octavo: shutting down; {client.num_streams} requests have {timeout:g} s to finish.",
        file=sys.stderr,
        flush=True,
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while (client.num_streams or service.in_flight) and not client.died.done():
                await asyncio.sleep(0.05)
    client.fail_streams(ApiError(503, "The server is shutting down.", code="shutting_down"))


def _announce(info: EngineInfo, listening: socket.socket, settings: Settings) -> None:
    for line in describe(info):
        print(line, file=sys.stderr)
    where = url(listening)
    print(f"Ready: {where}" + ("/v1" if where.startswith("http") else ""), file=sys.stderr, flush=True)
    if not settings.api_key and settings.uds is None and not settings.host.startswith(("127.", "localhost", "::1")):
        logger.warning("Anybody who reaches %s can use this server: no --api-key is set.", where)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: draining is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _StoppedError(Exception):
    """SIGTERM or SIGINT came while the server was still starting."""


class _StopSignal:
    """The first SIGTERM or SIGINT asks for an orderly end, the second ends the process at once."""

    def __init__(self) -> None:
        self.on_second: Callable[[], None] | None = None
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    async def wait(self) -> None:
        await self._event.wait()

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """The result of `work`. Raises _StoppedError as soon as a signal comes."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            working.cancel()
            raise _StoppedError
        finally:
            stopping.cancel()

    def _received(self, number: signal.Signals) -> None:
        if not self._event.is_set():
            self._event.set()
            return
        if self.on_second is not None:
            self.on_second()
        os._exit(128 + number)  # no clean-up is worth waiting for: the user has asked twice
