"""The heartbeat tells a silent engine from a slow one, and a slow one from a stuck one."""

from __future__ import annotations

import asyncio

from octavo_server.health import Heartbeat


def beating(heartbeat: Heartbeat, step_age: float = 0.0):
    async def ping(number: int) -> None:
        heartbeat.pong(number, step_age)

    return ping


async def silent(number: int) -> None:
    pass


def test_an_engine_that_answers_is_well() -> None:
    async def scenario() -> None:
        heartbeat = Heartbeat(0.2, 20.0, 0.4)
        assert await heartbeat.beat(beating(heartbeat)) is None
        assert (await heartbeat.check(beating(heartbeat))).ok

    asyncio.run(scenario())


def test_silence_is_first_unwell_and_then_given_up() -> None:
    async def scenario() -> None:
        heartbeat = Heartbeat(0.2, 20.0, 0.4)
        health = await heartbeat.check(silent)
        assert not health.ok
        assert "has not answered for 0.2 seconds" in health.reason
        reasons = [await heartbeat.beat(silent) for _ in range(12)]
        assert reasons[0] is None
        assert "has been silent for" in (reasons[-1] or "")

    asyncio.run(scenario())


def test_an_answer_ends_the_silence() -> None:
    async def scenario() -> None:
        heartbeat = Heartbeat(0.2, 20.0, 0.4)
        for _ in range(5):
            await heartbeat.beat(silent)
        assert await heartbeat.beat(beating(heartbeat)) is None
        assert (await heartbeat.check(beating(heartbeat))).ok

    asyncio.run(scenario())


def test_a_step_without_end_is_unwell_and_then_given_up_though_pings_are_answered() -> None:
    async def scenario() -> None:
        heartbeat = Heartbeat(1.0, 20.0, 60.0)
        assert (await heartbeat.check(beating(heartbeat, step_age=19.0))).ok
        assert "one step for 21 seconds" in (await heartbeat.check(beating(heartbeat, step_age=21.0))).reason
        assert "one step for 61 seconds" in (await heartbeat.beat(beating(heartbeat, step_age=61.0)) or "")

    asyncio.run(scenario())
