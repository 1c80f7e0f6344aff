"""How old a step is, as the engine process tells it to the server."""

from __future__ import annotations

import time

from octavo_server.engine_process import Pulse


def test_a_step_ages_until_it_ends() -> None:
    pulse = Pulse()
    assert pulse.step_age == 0.0
    with pulse:
        time.sleep(0.02)
        assert pulse.step_age >= 0.02
    assert pulse.step_age == 0.0


def test_a_step_does_not_age_while_it_compiles_and_does_afterwards() -> None:
    compiling = True
    pulse = Pulse()
    pulse.compiling = lambda: compiling
    started = time.monotonic()
    with pulse:
        time.sleep(0.05)
        assert pulse.step_age == 0.0
        compiling = False
        time.sleep(0.02)
        assert 0.02 <= pulse.step_age <= time.monotonic() - started - 0.05
