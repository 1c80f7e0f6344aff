"""A real server process with the demo model, on a free port of the loopback interface."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

SMALL = ("--max-model-len", "1024", "--kv-cache-memory", "64MiB", "--check-integrity", "--port", "0")
PATIENCE = 240.0  # seconds: a bound for a busy machine, not an expectation


class ServerProcess:
    """`octavo serve demo` and what it wrote to standard error."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "octavo_server", "serve", "demo", *SMALL, *arguments],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
                cwd=log.parent,
            )
        try:
            self.url = self.wait_for(r"Ready: (\S+)/v1").group(1)
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in the log, which must come before the process ends."""
        return until(lambda: re.search(pattern, self.log), alive=self.process, log=lambda: self.log)

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE)

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        engines = [int(pid) for pid in children if b"engine_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(engines) == 1
        return engines[0]

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)

    def openai(self, api_key: str = "unused") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=api_key,
            max_retries=0,
            timeout=PATIENCE,
            http_client=httpx.Client(trust_env=False),
        )

    def metric(self, name: str) -> float:
        """The sum over the labels of one metric."""
        with self.http() as client:
            text = client.get("/metrics").text
        values = re.findall(rf"^octavo:{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert values, f"there is no metric {name}"
        return sum(map(float, values))

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def until(
    condition: Callable[[], Any], alive: subprocess.Popen[bytes] | None = None, log: Callable[[], str] = str
) -> Any:
    """What `condition` gives once it is true; fails when it never is, or when the process `alive` has ended."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        ended = alive is not None and alive.poll() is not None
        if ended or time.monotonic() > deadline:
            pytest.fail(f"{'The server ended.' if ended else 'Waited in vain.'} {log()}")
        time.sleep(0.05)
    return result


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server with these arguments; all are stopped at the end."""
    servers: list[ServerProcess] = []

    def start(*arguments: str, **environment: str) -> ServerProcess:
        log = tmp_path_factory.mktemp("server") / "stderr.log"
        servers.append(ServerProcess(log, *arguments, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """One server for all the tests that leave it as they find it."""
    return start_server("--max-body-bytes", "200000")


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="session")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Wait until a condition holds."""
    return until
