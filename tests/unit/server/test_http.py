"""Limits, keys and event streams over real HTTP, without a model."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager
from threading import Thread

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from octavo.errors import QueueFullError
from octavo_server.http.body import read_json
from octavo_server.http.errors import to_api_error
from octavo_server.http.middleware import ApiKeys
from octavo_server.http.streaming import EventStream

LIMIT = 1000


class Site:
    """Routes that use the parts under test; `cleaned` counts generators whose cleanup has run."""

    def __init__(self) -> None:
        self.cleaned = 0

    async def echo(self, request: Request) -> Response:
        try:
            return PlainTextResponse(json.dumps(await read_json(request, LIMIT)))
        except Exception as error:
            return to_api_error(error).response()

    async def stream(self, request: Request) -> Response:
        return EventStream(self._events(request.query_params.get("fault", "")))

    async def _events(self, fault: str) -> AsyncGenerator[object, None]:
        try:
            if fault == "first":
                raise QueueFullError("The queue is full.")
            if fault == "wait":
                await asyncio.sleep(3600)
            yield {"number": 1}
            if fault == "second":
                raise RuntimeError("a secret of the program")
            while fault == "endless":
                yield {"filler": "x" * 100_000}
                await asyncio.sleep(0)  # as a real generator waits for the engine
            yield {"number": 2}
        finally:
            self.cleaned += 1

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/echo", self.echo, methods=["POST"]),
                Route("/stream", self.stream),
                Route("/health", lambda request: PlainTextResponse("ok")),
            ],
            middleware=[Middleware(ApiKeys, keys=("first", "zweiter-schlüssel"))],
        )


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def site() -> Site:
    return Site()


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[httpx.Client]:
    with (
        running(site.app()) as url,
        httpx.Client(base_url=url, headers={"Authorization": "Bearer first"}, trust_env=False) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Basic first", 401),
        ("first", 401),
        ("Bearer first", 200),
        ("bearer first", 200),
        ("Bearer zweiter-schlüssel", 200),
    ],
)
def test_every_key_opens_and_nothing_else_does(client: httpx.Client, authorization: str | None, status: int) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    assert httpx.get(f"{client.base_url}/stream", headers=headers, trust_env=False).status_code == status


def test_unknown_routes_and_odd_paths_are_denied_without_a_key(client: httpx.Client) -> None:
    for path in ("/nothing", "/health/", "//health", "/health/../stream", "/HEALTH"):
        assert httpx.get(f"{client.base_url}{path}", trust_env=False).status_code == 401, path
    assert httpx.get(f"{client.base_url}/health", trust_env=False).status_code == 200


def test_a_body_over_the_limit_is_refused_declared_or_chunked(client: httpx.Client) -> None:
    body = json.dumps({"text": "x" * LIMIT}).encode()
    assert client.post("/echo", content=body).status_code == 413
    assert client.post("/echo", content=iter([body[:600], body[600:]])).status_code == 413
    assert client.post("/echo", content=iter([b'{"a"', b": 1}"])).json() == {"a": 1}


@pytest.mark.parametrize(
    "body",
    ['{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}', "{", "", "[1]", '"a"', "null", "[" * 900, '{"a": "\\ud800"}'],
)
def test_what_is_not_a_json_object_is_refused(client: httpx.Client, body: str) -> None:
    answer = client.post("/echo", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


def test_invalid_utf8_is_refused(client: httpx.Client) -> None:
    assert client.post("/echo", content=b'{"a": "\xff\xfe"}').status_code == 400


def test_a_stream_sends_its_events_and_done(client: httpx.Client) -> None:
    answer = client.get("/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == 'data: {"number":1}\n\ndata: {"number":2}\n\ndata: [DONE]\n\n'


def test_an_error_before_the_first_event_is_a_status(client: httpx.Client) -> None:
    answer = client.get("/stream?fault=first")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["code"] == "queue_full"


def test_a_later_error_is_an_event_and_the_stream_is_not_done(client: httpx.Client) -> None:
    lines = [line for line in client.get("/stream?fault=second").text.splitlines() if line]
    assert json.loads(lines[1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "secret" not in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize("fault", ["wait", "endless"])
def test_a_client_that_leaves_ends_the_work_whether_it_waits_or_sends(
    client: httpx.Client, site: Site, fault: str
) -> None:
    before = site.cleaned
    with closing(socket.create_connection((client.base_url.host, client.base_url.port))) as connection:
        connection.sendall(
            f"GET /stream?fault={fault} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer first\r\n\r\n".encode()
        )
        if fault == "endless":
            connection.recv(100)
    for _ in range(100):
        if site.cleaned > before:
            return
        asyncio.run(asyncio.sleep(0.05))
    pytest.fail("the generator's cleanup never ran")
