"""The engine's own process: `python -m octavo_server.engine_process DIRECTORY`, started by `EngineClient`.

Two threads. The engine thread (the main one) takes commands, steps, and publishes events. The IO thread reads
the command socket, answers pings, and watches standard input: the server holds the other end of that pipe, so
its end means that the server is gone, however it went, and the engine goes too.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import zmq

from octavo.backend.errors import BackendError
from octavo.engine import Engine, EngineDeadError
from octavo.errors import InvalidRequestError, OctavoError, QueueFullError
from octavo.loading import load_model
from octavo.processor import EngineRequest
from octavo_server.messages import (
    COMMANDS,
    Abort,
    Add,
    Command,
    Failed,
    Fatal,
    Loading,
    Message,
    Ping,
    Pong,
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

Inbox = queue.SimpleQueue[Command]


def main(directory: Path) -> int:
    """Serve one engine over the sockets in `directory` until told to stop. Returns the exit code."""
    _leave_signals_to_the_server()
    _die_with_the_server()
    events = Events(directory)
    inbox: Inbox = queue.SimpleQueue()
    pulse = Pulse()
    threading.Thread(target=_serve_commands, args=(directory, inbox, pulse), name="octavo-io", daemon=True).start()
    try:
        engine = _build(inbox, events)
        if engine is None:
            return 1
        pulse.compiling = lambda: engine.compiling
        run(engine, inbox, events, pulse)
        return 0
    except EngineDeadError as error:
        logger.debug("The device was lost.", exc_info=True)
        events.send(Fatal(str(error)))
        return 1
    except Exception as error:
        logger.exception("The engine loop broke.")
        events.send(Fatal(f"The engine failed: {type(error).__name__}: {error}"))
        return 1
    finally:
        events.close()


def run(engine: Engine, inbox: Inbox, events: Events, pulse: Pulse) -> None:
    """The loop: take what has come, step, publish; until Stop."""
    while True:
        for command in _pending(inbox, wait=not engine.has_work):
            match command:
                case Add(request):
                    _add(engine, request, events)
                case Abort(request_ids):
                    for request_id in request_ids:
                        engine.abort(request_id)
                case Stop():
                    return
        updates = []
        if engine.has_work:
            with pulse:
                updates = engine.step()
        events.send(Updates(tuple(updates), engine.stats()))


class Pulse:
    """How long the running step has taken since it last compiled: set by the engine thread, read by the IO thread.

    compiling: tells whether the device compiles now, which may take minutes and is no sign of one that hangs.
    """

    def __init__(self) -> None:
        self.compiling: Callable[[], bool] = bool
        self._since: float | None = None
        self._compiled = 0.0  # when it was last seen compiling

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = None

    @property
    def step_age(self) -> float:
        """Seconds since the running step began, or was last seen compiling; 0 between steps."""
        since, now = self._since, time.monotonic()
        if self.compiling():
            self._compiled = now
        return 0.0 if since is None else now - max(since, self._compiled)


class Events:
    """The engine thread's end of the event socket."""

    def __init__(self, directory: Path) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set_hwm(0)  # bounded by the requests admitted; a limit would block the engine on a slow reader
        self._socket.connect(events_address(directory))

    def send(self, message: Message) -> None:
        self._socket.send(encode(message), copy=False)

    def close(self) -> None:
        """Wait, two seconds at most, until the last words have gone out."""
        self._socket.close(linger=2000)
        self._context.term()


def _build(inbox: Inbox, events: Events) -> Engine | None:
    start = inbox.get()
    if not isinstance(start, Start):
        raise RuntimeError(f"The first command must be Start, and was {type(start).__name__}.")

    def progress(stage: str, fraction: float) -> None:
        events.send(Loading(stage, fraction))

    try:
        # And not Engine.from_config, which closes the device before it raises: that may wait for ever for a card that
        # hangs, and the server would never be told. This process ends, which gives back all there is.
        engine = Engine(load_model(start.config, progress), start.config)
        engine.warm_up(progress)
    except (OctavoError, BackendError) as error:
        logger.debug("The engine could not be built.", exc_info=True)
        events.send(Failed(str(error), user_error=True))
        return None
    except Exception as error:
        logger.exception("The engine could not be built.")
        events.send(Failed(f"{type(error).__name__}: {error}", user_error=False))
        return None
    gc.collect()
    gc.freeze()  # what start-up left lives as long as the process: keep it out of every later collection
    events.send(Ready(engine.info))
    return engine


def _pending(inbox: Inbox, wait: bool) -> Iterator[Command]:
    """What lies in the inbox; with `wait`, blocks for the first one."""
    if wait:
        yield inbox.get()
    while True:
        try:
            yield inbox.get_nowait()
        except queue.Empty:
            return


def _add(engine: Engine, request: EngineRequest, events: Events) -> None:
    try:
        engine.add(request)
    except QueueFullError as error:
        events.send(Rejected(request.request_id, Refusal.QUEUE_FULL, str(error)))
    except InvalidRequestError as error:
        events.send(Rejected(request.request_id, Refusal.INVALID, str(error), error.param, error.code))
    except EngineDeadError:
        raise
    except Exception as error:  # a request that breaks admission ends itself, not the engine
        logger.exception("Request %s could not be added.", request.request_id)
        events.send(Rejected(request.request_id, Refusal.ERROR, f"{type(error).__name__}: {error}"))


def _serve_commands(directory: Path, inbox: Inbox, pulse: Pulse) -> None:
    """The IO thread: pass commands on, answer pings at once, and leave when the server does."""
    commands = zmq.Context().socket(zmq.PAIR)
    commands.set_hwm(0)
    commands.connect(commands_address(directory))
    poller = zmq.Poller()
    poller.register(commands, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if sys.stdin.fileno() in ready:  # nothing is ever written there: readable means end of file
            os._exit(1)  # the engine thread may be deep in a step, and nobody is left to tell
        command = COMMANDS.decode(commands.recv())
        if isinstance(command, Ping):
            commands.send(encode(Pong(command.number, pulse.step_age)))
        else:
            inbox.put(command)


def _leave_signals_to_the_server() -> None:
    """Ctrl-C and a service manager's SIGTERM reach every process; the server is the one that drains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _die_with_the_server() -> None:
    """Ask Linux to kill this process when its parent ends: the pipe cannot wake a process that is stopped."""
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("OCTAVO_LOG_LEVEL", "info").upper(), format="%(levelname)s %(message)s")
    sys.exit(main(Path(sys.argv[1])))
