"""Keys, draining, and an engine that dies or hangs: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

Eventually = Callable[[Callable[[], Any]], Any]
ENDLESS = {"prompt": "One, two,", "max_tokens": 900, "ignore_eos": True, "stream": True}


@contextmanager
def streaming(server: Any, **fields: Any) -> Iterator[Iterator[str]]:
    """Events of a stream whose first event has come."""
    with server.http() as client, client.stream("POST", "/v1/completions", json={**ENDLESS, **fields}) as answer:
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        next(lines)
        yield lines


def status(server: Any, path: str) -> int:
    with server.http() as client:
        return client.get(path).status_code


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_keys_guard_every_route_that_is_no_probe_and_sigterm_drains_a_running_stream(
    start_server: Callable[..., Any], eventually: Eventually
) -> None:
    server = start_server("--api-key", "one", OCTAVO_LOG_LEVEL="warning")
    for path in ("/v1/models", "/metrics", "/version", "/nothing", "/v1/completions"):
        assert status(server, path) == 401, path
    assert [status(server, path) for path in ("/health", "/ready")] == [200, 200]
    with server.openai("one") as client:
        assert [model.id for model in client.models.list()] == ["demo"]
    engine = server.engine_pid()

    headers = {"Authorization": "Bearer one"}
    body = {**ENDLESS, "max_tokens": 24}
    with (
        server.http(headers=headers) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: status(server, "/ready") == 503)
        with server.http(headers=headers) as late:
            refused = late.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        rest = list(lines)
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert server.wait() == 0
    eventually(lambda: gone(engine))


def test_a_full_queue_is_429_and_what_outlasts_the_shutdown_timeout_ends_with_an_error(
    start_server: Callable[..., Any], eventually: Eventually
) -> None:
    server = start_server("--shutdown-timeout", "0.5", "--max-num-seqs", "1", "--max-waiting", "1")

    def wait_in_the_queue() -> int:
        with server.http() as client:
            return client.post("/v1/completions", json={"prompt": "a"}).status_code

    with ThreadPoolExecutor(1) as pool, streaming(server) as events:
        waiting = pool.submit(wait_in_the_queue)
        eventually(lambda: server.metric("num_requests_waiting") == 1)
        with server.http() as client:
            refused = client.post("/v1/completions", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert "retry-after" in refused.headers
        server.process.send_signal(signal.SIGTERM)
        assert json.loads(list(events)[-1])["error"]["code"] == "shutting_down"
        assert waiting.result() == 503
    assert server.wait() == 0


def test_a_killed_engine_ends_its_requests_with_an_error_and_the_server_with_the_reason(
    start_server: Callable[..., Any], eventually: Eventually
) -> None:
    server = start_server()
    with streaming(server) as events:
        os.kill(server.engine_pid(), signal.SIGKILL)
        last = json.loads(list(events)[-1])
    assert last["error"]["code"] == "engine_dead"
    assert "SIGKILL" in last["error"]["message"]
    with suppress(httpx.TransportError):  # the server may have gone by now, which says the same
        assert status(server, "/health") == 503
    assert server.wait() == 1
    assert "was killed by SIGKILL" in server.log


def test_a_stopped_engine_is_unwell_within_the_health_timeout_and_then_given_up(
    start_server: Callable[..., Any], eventually: Eventually
) -> None:
    server = start_server("--health-timeout", "1", "--engine-timeout", "8")
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    with server.http() as client:
        answer = client.get("/health")
    assert answer.status_code == 503
    assert "has not answered for 1 seconds" in answer.json()["error"]["message"]
    assert server.wait() == 1
    assert "has been silent for 8 seconds" in server.log
    assert gone(engine)


def test_the_engine_dies_with_a_killed_server_and_a_second_sigterm_ends_at_once(
    start_server: Callable[..., Any], eventually: Eventually
) -> None:
    server = start_server()
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)  # even stopped it must not be left behind
    server.process.kill()
    server.wait()
    eventually(lambda: gone(engine))

    server = start_server()
    engine = server.engine_pid()
    with streaming(server):
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("shutting down")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
    eventually(lambda: gone(engine))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--port", "{taken}"], "Port {taken} on 127.0.0.1 is in use"),
        (["demo", "--backend", "abacus", "--port", "0"], "abacus"),
        (["demo", "--dtype", "float7", "--port", "0"], "float7"),
        (["demo", "--kv-cache-memory", "1KiB", "--port", "0"], "too small for one request"),
        (["/no/such/model", "--port", "0"], "/no/such/model"),
        (["demo", "--port", "eighty"], "--port: input should be a valid integer"),
        (["demo", "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_what_cannot_start_is_one_sentence_and_exit_code_2(arguments: list[str], words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = str(listening.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "octavo_server", "serve", *(word.format(taken=taken) for word in arguments)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert ended.returncode == 2, ended.stderr
    assert words.format(taken=taken) in ended.stderr
    assert "Traceback" not in ended.stderr
