"""A step that waits for a compiler is not a device that hangs: the server waits, and says that it is well."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from .conftest import ServerProcess

FIXTURE = Path(__file__).parents[1] / "fixtures" / "compiling_backend"
LIMITS = ("--step-timeout", "2", "--engine-timeout", "4")
SECONDS = 9.0  # of compiling: beyond both limits


@pytest.fixture
def start(start_server: Callable[..., ServerProcess]) -> Callable[[str], ServerProcess]:
    def start(told: str) -> ServerProcess:
        options = ("--backend-options", f"seconds={SECONDS}", "--backend-options", f"told={told}")
        return start_server("--backend", "compiling", *options, *LIMITS, PYTHONPATH=str(FIXTURE))

    return start


def _complete(server: ServerProcess) -> str:
    with server.openai() as client:
        return client.completions.create(model="demo", prompt="One, two,", max_tokens=3, temperature=0).choices[0].text


def test_a_device_that_says_that_it_compiles_is_waited_for(start: Callable[[str], ServerProcess]) -> None:
    server = start("yes")
    answers: list[str] = []
    request = threading.Thread(target=lambda: answers.append(_complete(server)))
    request.start()
    found = set()
    with server.http() as http:
        while request.is_alive():
            found.add(http.get("/health").status_code)
            request.join(0.5)
    assert found == {200}
    assert answers == [_complete(server)]


def test_a_step_as_long_of_a_device_that_does_not_is_given_up(start: Callable[[str], ServerProcess]) -> None:
    server = start("no")
    with pytest.raises(openai.APIError):
        _complete(server)
    assert server.wait() == 1
    assert re.search(r"has been in one step for \d+ seconds; it is given up", server.log)
