"""Is the engine making progress? Round trips through its process, judged by two limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Ping = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Health:
    """`reason` says what is wrong, or is empty."""

    ok: bool
    reason: str = ""


class Heartbeat:
    """Pings once an interval and remembers what came back.

    health_timeout: seconds of silence after which the engine counts as unwell.
    step_timeout: seconds one step may take before it counts as unwell.
    engine_timeout: seconds of either after which it is given up.

    Silence is counted in beats that went unanswered and not by the clock, so a server that was itself
    suspended does not blame the engine when it wakes.
    """

    def __init__(self, health_timeout: float, step_timeout: float, engine_timeout: float) -> None:
        self._health_timeout = health_timeout
        self._step_timeout = step_timeout
        self._engine_timeout = engine_timeout
        self._interval = min(1.0, health_timeout / 4, engine_timeout / 4)
        self._number = 0
        self._silence = 0.0  # seconds since the engine last answered
        self._step_age = 0.0  # seconds, as of the last answer
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def beat(self, ping: Ping) -> str | None:
        """Ping, wait one interval, and say why the engine must be given up, or None."""
        answered = await self._round_trip(ping, self._interval, at_least=self._interval)
        self._silence = 0.0 if answered else self._silence + self._interval
        if self._silence >= self._engine_timeout:
            return f"has been silent for {self._silence:.0f} seconds"
        if self._step_age >= self._engine_timeout:
            return f"has been in one step for {self._step_age:.0f} seconds"
        return None

    async def check(self, ping: Ping) -> Health:
        """At once where silence is known already, otherwise after a round trip within `health_timeout`."""
        remaining = self._health_timeout - self._silence
        if remaining <= 0 or not await self._round_trip(ping, remaining):
            return Health(False, f"The engine process has not answered for {self._health_timeout:g} seconds.")
        if self._step_age > self._step_timeout:
            return Health(False, f"The engine has been in one step for {self._step_age:.0f} seconds.")
        return Health(True)

    def pong(self, number: int, step_age: float) -> None:
        """Record an answer."""
        self._silence = 0.0
        self._step_age = step_age
        if (future := self._waiting.get(number)) is not None and not future.done():
            future.set_result(None)

    async def _round_trip(self, ping: Ping, timeout: float, at_least: float = 0.0) -> bool:
        loop = asyncio.get_running_loop()
        started = loop.time()
        self._number += 1
        number = self._number
        answer = self._waiting[number] = loop.create_future()
        try:
            await ping(number)
            await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            return False
        finally:
            del self._waiting[number]
        await asyncio.sleep(max(0.0, started + at_least - loop.time()))
        return True
