"""What the runner and its worker processes say to each other: frames of msgpack, each after its length."""

from __future__ import annotations

import math
import os
import select
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from octavo.backend import DeviceConfig, DeviceInfo
from octavo_conformance.tolerances import Override
from octavo_conformance.verdict import Outcome

T = TypeVar("T")
_HEADER = 4  # bytes of a frame's length


@dataclass(frozen=True, slots=True)
class Assignment:
    """The first message to a worker: which backend it opens."""

    backend: str
    kernel: str
    options: dict[str, str]
    overrides: tuple[Override, ...] = ()

    @property
    def config(self) -> DeviceConfig:
        return DeviceConfig(backend=self.backend, kernel=self.kernel, options=dict(self.options))


@dataclass(frozen=True, slots=True)
class Opened:
    """A worker's first message: the device it opened, or why there is none.

    unavailable: there is no such device here. broken: the backend failed, and with it every case. unknown: there is no
    such backend.
    """

    info: DeviceInfo | None = None
    package: str = ""
    version: str = ""
    api_version: int = 0
    unavailable: str = ""
    broken: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A worker's answer to a case. healthy: the device still answers, so that the worker may go on."""

    outcome: Outcome
    healthy: bool = True


def send(descriptor: int, message: Any) -> None:
    """Write one message to a file descriptor. Raises OSError where nobody reads it any more."""
    # Not JSON, which has no infinity. The hook: read-only mappings, which msgspec does not know.
    content = msgspec.msgpack.encode(message, enc_hook=dict)
    frame = len(content).to_bytes(_HEADER, "little") + content
    while frame:
        frame = frame[os.write(descriptor, frame) :]


def receive(descriptor: int, kind: type[T], deadline: float = math.inf) -> T:
    """Read one message of that type, waiting until the deadline (of time.monotonic).

    Raises EOFError where the other side is gone, TimeoutError at the deadline, msgspec.DecodeError for anything else
    than such a message.
    """
    size = int.from_bytes(_read(descriptor, _HEADER, deadline), "little")
    return msgspec.msgpack.decode(_read(descriptor, size, deadline), type=kind)


def _read(descriptor: int, size: int, deadline: float) -> bytes:
    content = bytearray()
    while len(content) < size:
        if deadline < math.inf:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
        part = os.read(descriptor, size - len(content))
        if not part:
            raise EOFError
        content += part
    return bytes(content)
