"""The server's side of the engine process: start it, send it requests, know at every moment whether it is
alive.

Everything runs on one asyncio loop. `EngineClient` owns the process and the sockets; an `UpdateStream` is
what one HTTP request holds of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import zmq
import zmq.asyncio

from octavo.config import EngineConfig
from octavo.engine import EngineStats
from octavo.errors import InvalidRequestError, OctavoError, QueueFullError
from octavo.loading import EngineInfo
from octavo.outputs import RequestUpdate
from octavo.processor import EngineRequest
from octavo_server.health import Health, Heartbeat
from octavo_server.messages import (
    EVENTS,
    PONGS,
    Abort,
    Add,
    Failed,
    Fatal,
    Loading,
    Message,
    Ping,
    Ready,
    Refusal,
    Rejected,
    Start,
    Stop,
    Updates,
    commands_address,
    encode,
    events_address,
)

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
StepObserver = Callable[[EngineStats], None]


class EngineDeadError(Exception):
    """The engine process is gone or given up; the message says why."""


class RequestFailedError(Exception):
    """One request failed inside the engine; the others go on."""


class StartupError(OctavoError):
    """The engine could not be built for a reason that the user can put right."""


class EngineClient:
    """A running engine process. Made by `engine_client()`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        context: zmq.asyncio.Context,
        directory: Path,
        heartbeat: Heartbeat,
        progress: Progress,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._process = process
        self._commands: zmq.asyncio.Socket = context.socket(zmq.PAIR)
        self._events: zmq.asyncio.Socket = context.socket(zmq.PULL)
        for socket, address in ((self._commands, commands_address), (self._events, events_address)):
            socket.set_hwm(0)
            socket.linger = 0
            socket.bind(address(directory))
        self._heartbeat = heartbeat
        self._progress = progress
        self._streams: dict[str, UpdateStream] = {}  # by request id
        self._ready: asyncio.Future[EngineInfo] = loop.create_future()
        self._tasks = [
            loop.create_task(self._guard(work))
            for work in (self._receive_events(), self._receive_pongs(), self._watch_process(), self._beat())
        ]
        self.stats: EngineStats | None = None  # after the latest step
        self.on_step: StepObserver | None = None
        self.died: asyncio.Future[str] = loop.create_future()  # why the engine is dead, once it is

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def num_streams(self) -> int:
        """Streams that are open: HTTP requests that wait for the engine."""
        return len({id(stream) for stream in self._streams.values()})

    async def build(self, config: EngineConfig) -> EngineInfo:
        """Have the process build its engine. Raises StartupError (the user's to mend) or EngineDeadError."""
        await self._send(Start(config))
        return await self._ready

    @asynccontextmanager
    async def open(self, requests: Sequence[EngineRequest]) -> AsyncIterator[UpdateStream]:
        """Run `requests`; leaving the context aborts those that have not finished. Raises EngineDeadError."""
        if self.died.done():
            raise EngineDeadError(self.died.result())
        stream = UpdateStream(request.request_id for request in requests)
        self._streams.update((request.request_id, stream) for request in requests)
        try:
            for request in requests:
                await self._send(Add(request))
            yield stream
        finally:
            for request in requests:
                self._streams.pop(request.request_id, None)
            if stream.unfinished and not self.died.done():
                # The task may be being cancelled, and zmq sends this small a message at once.
                self._commands.send(encode(Abort(tuple(stream.unfinished))))

    async def health(self) -> Health:
        """A round trip through the engine process, no longer than the heartbeat's `health_timeout`."""
        if self.died.done():
            return Health(False, self.died.result())
        return await self._heartbeat.check(self._ping)

    def fail_streams(self, error: Exception) -> None:
        """End every open stream with `error`; their contexts abort the requests."""
        for stream in set(self._streams.values()):
            stream.fail(error)

    async def close(self) -> None:
        """Stop the process: politely for two seconds, then for good."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process.returncode is None and not self.died.done():
            await self._send(Stop())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), 2.0)
        self.kill()
        await self._process.wait()
        self._commands.close()
        self._events.close()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _send(self, message: Message) -> None:
        await self._commands.send(encode(message))

    async def _ping(self, number: int) -> None:
        await self._send(Ping(number))

    async def _receive_events(self) -> None:
        while True:
            match EVENTS.decode(await self._events.recv()):
                case Updates(updates, stats):
                    self.stats = stats
                    for update in updates:
                        self._publish(update)
                    if self.on_step is not None and updates:
                        self.on_step(stats)
                case Rejected() as rejected:
                    self._reject(rejected)
                case Loading(stage, fraction):
                    self._progress(stage, fraction)
                case Ready(info):
                    self._ready.set_result(info)
                case Failed(reason, user_error):
                    self._die(reason, StartupError(reason) if user_error else None)
                case Fatal(reason):
                    self._die(reason)

    def _publish(self, update: RequestUpdate) -> None:
        stream = self._streams.get(update.request_id)
        if stream is None:  # aborted while this update was on its way
            return
        if update.finished:
            del self._streams[update.request_id]
        stream.put(update)

    def _reject(self, rejected: Rejected) -> None:
        stream = self._streams.pop(rejected.request_id, None)
        if stream is None:
            return
        stream.unfinished.discard(rejected.request_id)
        match rejected.refusal:
            case Refusal.QUEUE_FULL:
                stream.fail(QueueFullError(rejected.reason))
            case Refusal.INVALID:
                stream.fail(InvalidRequestError(rejected.reason, param=rejected.param, code=rejected.code))
            case Refusal.ERROR:
                stream.fail(RequestFailedError(rejected.reason))

    async def _receive_pongs(self) -> None:
        while True:
            pong = PONGS.decode(await self._commands.recv())
            self._heartbeat.pong(pong.number, pong.step_age)

    async def _watch_process(self) -> None:
        code = await self._process.wait()
        await asyncio.sleep(0.1)  # its last words may still be in the socket, and they say more than the code
        self._die(f"The engine process {self.pid} {_ending(code)}.")

    async def _beat(self) -> None:
        """Ping once an interval; give up on an engine that is silent, or stuck in one step, for too long."""
        await asyncio.wait([self._ready])  # loading may hold the interpreter for long: nothing to judge yet
        while not self.died.done():
            if (reason := await self._heartbeat.beat(self._ping)) is not None:
                self._die(f"The engine process {self.pid} {reason}; it is given up.")
                self.kill()

    async def _guard(self, work: Coroutine[None, None, None]) -> None:
        """A background task that breaks takes the engine down with it, rather than leave requests waiting."""
        try:
            await work
        except Exception as error:
            logger.exception("Talking to the engine process failed.")
            self._die(f"Talking to the engine process failed: {type(error).__name__}: {error}")

    def _die(self, reason: str, startup_error: StartupError | None = None) -> None:
        if self.died.done():
            return
        self.died.set_result(reason)
        if not self._ready.done():
            self._ready.set_exception(startup_error or EngineDeadError(reason))
        self.fail_streams(EngineDeadError(reason))


class UpdateStream:
    """The updates of the requests that one HTTP request opened, in the order they come; ends when all have
    finished.

    Iterating raises what ended a request early: EngineDeadError, RequestFailedError, QueueFullError,
    InvalidRequestError.
    """

    def __init__(self, request_ids: Iterable[str]) -> None:
        self.unfinished = set(request_ids)
        self._queue: asyncio.Queue[RequestUpdate | Exception] = asyncio.Queue()

    def put(self, update: RequestUpdate) -> None:
        self._queue.put_nowait(update)

    def fail(self, error: Exception) -> None:
        self._queue.put_nowait(error)

    def __aiter__(self) -> AsyncIterator[RequestUpdate]:
        return self

    async def __anext__(self) -> RequestUpdate:
        if not self.unfinished:
            raise StopAsyncIteration
        update = await self._queue.get()
        if isinstance(update, Exception):
            raise update
        if update.finished:
            self.unfinished.discard(update.request_id)
        if update.error is not None:
            raise RequestFailedError(update.error)
        return update


@asynccontextmanager
async def engine_client(heartbeat: Heartbeat, progress: Progress, log_level: str) -> AsyncIterator[EngineClient]:
    """Start an engine process, and stop it at the end; call `build()` next."""
    directory = Path(tempfile.mkdtemp(prefix="octavo-"))  # mode 0700: no other user reaches the sockets
    context = zmq.asyncio.Context()
    client = None
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "octavo_server.engine_process",
            str(directory),
            # Held open and never written: its end tells the process that we are gone.
            stdin=asyncio.subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            env={**os.environ, "OCTAVO_LOG_LEVEL": log_level},
            start_new_session=True,
        )
        client = EngineClient(process, context, directory, heartbeat, progress)
        yield client
    finally:
        if client is not None:
            await client.close()
        context.term()
        shutil.rmtree(directory, ignore_errors=True)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended by itself with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"
