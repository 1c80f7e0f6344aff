"""What the server and the engine process say to each other: msgpack structs, never pickle.

Two sockets in a private directory, each used by exactly one thread on either side:

    server --- commands.sock (PAIR) -----> IO thread       Start Add Abort Ping Stop
           <------------------------------                 Pong
           <-- events.sock (PUSH to PULL)  engine thread   Loading Ready Failed Rejected Updates Fatal

The IO thread answers Ping while a step runs, so silence means a stopped process and not a long step.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from octavo.config import EngineConfig
from octavo.engine import EngineStats
from octavo.loading import EngineInfo
from octavo.outputs import RequestUpdate
from octavo.processor import EngineRequest


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of everything on the wire."""


class Start(Message, frozen=True, tag=True):
    """First message: build the engine."""

    config: EngineConfig


class Add(Message, frozen=True, tag=True):
    request: EngineRequest


class Abort(Message, frozen=True, tag=True):
    request_ids: tuple[str, ...]


class Ping(Message, frozen=True, tag=True):
    number: int


class Stop(Message, frozen=True, tag=True):
    """Leave the engine loop and exit."""


Command = Start | Add | Abort | Ping | Stop


class Pong(Message, frozen=True, tag=True):
    """Answer to the Ping of the same number. `step_age`: seconds the running step has taken, or 0."""

    number: int
    step_age: float


class Loading(Message, frozen=True, tag=True):
    """Progress of start-up: what is being done, and how much of it in [0, 1]."""

    stage: str
    fraction: float


class Ready(Message, frozen=True, tag=True):
    info: EngineInfo


class Failed(Message, frozen=True, tag=True):
    """The engine could not be built. `user_error`: the sentence is for the user, who can put it right."""

    reason: str
    user_error: bool


class Refusal(Enum):
    """Why the engine did not take a request."""

    INVALID = "invalid"
    QUEUE_FULL = "queue_full"
    ERROR = "error"


class Rejected(Message, frozen=True, tag=True):
    request_id: str
    refusal: Refusal
    reason: str
    param: str | None = None
    code: str = "invalid_request"


class Updates(Message, frozen=True, tag=True):
    """What one step did, and the engine's counters after it."""

    updates: tuple[RequestUpdate, ...]
    stats: EngineStats


class Fatal(Message, frozen=True, tag=True):
    """The engine loop itself broke; the process ends."""

    reason: str


Event = Loading | Ready | Failed | Rejected | Updates | Fatal


def commands_address(directory: Path) -> str:
    return f"ipc://{directory / 'commands.sock'}"


def events_address(directory: Path) -> str:
    return f"ipc://{directory / 'events.sock'}"


def encode(message: Message) -> bytes:
    return _ENCODER.encode(message)


def _plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):  # read-only defaults of frozen dataclasses
        return dict(value)
    raise TypeError(f"{type(value).__name__} does not cross the process boundary")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
COMMANDS = msgspec.msgpack.Decoder(Command)
PONGS = msgspec.msgpack.Decoder(Pong)
EVENTS = msgspec.msgpack.Decoder(Event)
