"""Authentication, as plain ASGI so that a client's going away still reaches the handlers."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo_server.http.errors import ApiError

PROBES = frozenset({"/health", "/ready"})


class ApiKeys:
    """Refuses every request that brings none of the keys, on every route, known or not, that is no probe.

    All keys are compared, each in constant time, so that neither a key nor which one matched can be timed.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES and not self._allows(Headers(scope=scope)):
            refusal = ApiError(
                401,
                "This server asks for a valid API key, sent in the header `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allows(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # A header is latin-1 on the wire; a key with other letters arrives as their UTF-8 bytes.
        offered = key.strip(" \t").encode("latin-1", "replace")
        matches = [hmac.compare_digest(offered, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(matches)
