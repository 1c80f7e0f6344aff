"""The routes, and the ASGI application around them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo_server import __version__
from octavo_server.api.chat import Chat
from octavo_server.api.completions import Completions
from octavo_server.api.messages import plain_messages
from octavo_server.api.requests import DetokenizeRequest, TokenizeRequest
from octavo_server.api.responses import Detokenized, ModelCard, ModelList, Tokenized
from octavo_server.http.body import convert, read_json
from octavo_server.http.errors import ApiError, error_response, shown, to_api_error
from octavo_server.http.middleware import ApiKeys
from octavo_server.http.streaming import ClientGoneError, EventStream, until_disconnect
from octavo_server.service import Service

Handler = Callable[[Service, Request], Awaitable[Response]]
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def build_app(service: Service) -> Starlette:
    """The application for one served model."""
    routes: list[tuple[str, str, Handler]] = [
        ("POST", "/v1/chat/completions", chat_completions),
        ("POST", "/v1/completions", completions),
        ("GET", "/v1/models", models),
        ("GET", "/v1/models/{model:path}", model),
        ("POST", "/tokenize", tokenize),
        ("POST", "/detokenize", detokenize),
        ("GET", "/health", health),
        ("GET", "/ready", ready),
        ("GET", "/metrics", metrics),
        ("GET", "/version", version),
    ]
    middleware = [Middleware(_Counted, service=service)]
    if service.settings.api_key:
        middleware.append(Middleware(ApiKeys, keys=service.settings.api_key))
    app = Starlette(
        routes=[Route(path, partial(_answer, service, handler), methods=[method]) for method, path, handler in routes],
        middleware=middleware,
        exception_handlers={HTTPException: error_response},
    )
    app.router.redirect_slashes = False  # a redirect would be built from the host that the client names
    return app


async def chat_completions(service: Service, request: Request) -> Response:
    return await _generate(service, request, Chat)


async def completions(service: Service, request: Request) -> Response:
    return await _generate(service, request, Completions)


async def models(service: Service, request: Request) -> Response:
    return _json(ModelList(data=[_card(service, name) for name in service.settings.model_names]))


async def model(service: Service, request: Request) -> Response:
    return _json(_card(service, service.model_name(request.path_params["model"])))


async def tokenize(service: Service, request: Request) -> Response:
    asked = convert(await read_json(request, service.settings.max_body_bytes), TokenizeRequest)
    service.model_name(asked.model)
    tokenizer = service.tokenizer
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError(400, "Give prompt or messages, one of the two.", param="prompt", code="invalid_request")
    if asked.prompt is not None:
        service.processor.check_characters("prompt", len(asked.prompt))
        tokens = await service.tokenizing(tokenizer.encode, asked.prompt, asked.add_special_tokens)
    else:
        messages = plain_messages(asked.messages or [])
        service.processor.check_characters("messages", sum(len(message["content"]) for message in messages))
        tokens = await service.tokenizing(tokenizer.apply_chat_template, messages, asked.add_generation_prompt)
    texts = None
    if asked.return_token_strs:
        texts = await service.tokenizing(lambda: [tokenizer.token_text(token) for token in tokens])
    return _json(Tokenized(len(tokens), service.info.max_model_len, list(tokens), texts))


async def detokenize(service: Service, request: Request) -> Response:
    asked = convert(await read_json(request, service.settings.max_body_bytes), DetokenizeRequest)
    service.model_name(asked.model)
    size, most = service.info.vocab_size, service.info.max_model_len
    if len(asked.tokens) > most:
        raise ApiError(400, f"tokens has {len(asked.tokens)} ids; at most {most} are possible.", param="tokens")
    for token in asked.tokens:
        if not 0 <= token < size:
            raise ApiError(
                400,
                f"tokens holds {shown(token)}; this model's token ids are 0 to {size - 1}.",
                param="tokens",
                code="invalid_request",
            )
    return _json(Detokenized(await service.tokenizing(service.tokenizer.decode, asked.tokens)))


async def health(service: Service, request: Request) -> Response:
    """200 while the engine makes progress, found out by a round trip through it."""
    state = await service.client.health()
    return _json({"status": "ok"}) if state.ok else _unwell(state.reason)


async def ready(service: Service, request: Request) -> Response:
    """200 while new requests are taken."""
    if service.draining:
        return _unwell("The server is shutting down.")
    return await health(service, request)


async def metrics(service: Service, request: Request) -> Response:
    return PlainTextResponse(service.metrics.render(), media_type=PROMETHEUS)


async def version(service: Service, request: Request) -> Response:
    return _json({"version": __version__})


async def _generate(service: Service, request: Request, kind: type[Chat] | type[Completions]) -> Response:
    service.require_accepting()
    body = await read_json(request, service.settings.max_body_bytes)
    service.require_accepting()  # the body may have taken its time
    generation = await kind.prepare(service, body)
    if generation.streamed:
        return EventStream(generation.stream())
    return _json(await until_disconnect(request.receive, generation.complete()))


async def _answer(service: Service, handler: Handler, request: Request) -> Response:
    try:
        return await handler(service, request)
    except ClientGoneError:
        return Response(status_code=499)  # for the counters: nobody reads it
    except HTTPException:
        raise
    except Exception as error:
        return to_api_error(error).response()


class _Counted:
    """Counts responses by route and status, and requests that are not answered to the end."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def counting(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # A path that is no route is the client's invention and must not become a label.
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.observe_response(route, message["status"])
            await send(message)

        self._service.in_flight += 1
        try:
            await self._app(scope, receive, counting)
        except asyncio.CancelledError:  # the end of a shutdown: what has not been answered is told so
            if not started:
                error = ApiError(503, "The server is shutting down.", code="shutting_down")
                await error.response()(scope, receive, send)
        finally:
            self._service.in_flight -= 1


def _card(service: Service, name: str) -> ModelCard:
    return ModelCard(id=name, created=int(service.started), max_model_len=service.info.max_model_len)


def _unwell(reason: str) -> Response:
    return ApiError(503, reason, code="unavailable").response()


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
