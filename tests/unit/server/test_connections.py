"""Keys, clients that hold connections open, and what messages repeat of a client's values."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.datastructures import Headers

from octavo.errors import ConfigError
from octavo_server.http.errors import shown
from octavo_server.http.middleware import ApiKeys
from octavo_server.http.protocol import Protocol
from octavo_server.settings import load_settings


async def _app(*_: Any) -> None: ...


@pytest.mark.parametrize("key", ["secret", "voilà", "a\x85"])
def test_a_key_is_accepted_whatever_letters_it_ends_in(key: str) -> None:
    offered = Headers({"authorization": f"Bearer {key.encode().decode('latin-1')}"})
    assert ApiKeys(_app, [key])._allows(offered)
    assert not ApiKeys(_app, [key + "x"])._allows(offered)


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="a key that is not empty"):
        load_settings({"api_key": (key,)}, environment={})


def test_messages_repeat_no_more_than_a_line_of_what_a_client_sent() -> None:
    assert shown("demo") == "'demo'"
    assert len(shown("x" * 10**6)) < 80
    assert shown(10**5000) == "a very long number"


async def _slow(scope: Any, receive: Any, send: Any) -> None:
    """Answers after longer than a connection may be silent here."""
    await asyncio.sleep(0.6)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr("octavo_server.http.protocol.HEADER_TIMEOUT", 0.2)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(_slow, http=Protocol, lifespan="off", ws="none", log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: here\r\nX-Slow: "])
def test_a_connection_whose_request_does_not_come_is_closed(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(sent)
        try:
            ended = client.recv(1) == b""
        except ConnectionResetError:
            ended = True
        assert ended


def test_an_answer_may_take_longer_than_a_request_may(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(64).startswith(b"HTTP/1.1 200")
