"""Errors in the OpenAI API's format: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequestError, OctavoError, QueueFullError
from octavo_server.engine_client import EngineDeadError, RequestFailedError

logger = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}


class ApiError(Exception):
    """An answer other than success. `param`: the field at fault; `code`: a stable word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Response(
            msgspec.json.encode(self.body()), self.status, headers=self.headers, media_type="application/json"
        )


def shown(value: str | int, most: int = 64) -> str:
    """A client's value as a message repeats it: quoted where it is text, cut where it is long."""
    if isinstance(value, int):
        return str(value) if abs(value) < 10**most else "a very long number"
    return repr(value if len(value) <= most else value[:most] + "…")


def to_api_error(error: Exception) -> ApiError:
    """The answer that `error` deserves; a traceback goes to the log, never to the client."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": "1"})
        case InvalidRequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case OctavoError():
            return ApiError(400, str(error), code="invalid_request")
        case EngineDeadError():
            return ApiError(503, str(error), code="engine_dead")
        case RequestFailedError():
            return ApiError(500, f"The request failed in the engine: {error}", code="request_failed")
        case HTTPException(status_code=404):
            return ApiError(404, "There is no such route; see /v1/models, /v1/chat/completions.", code="not_found")
        case HTTPException(status_code=405):
            return ApiError(
                405,
                "The route exists, with another method.",
                code="method_not_allowed",
                headers=error.headers,
            )
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=error.headers)
    logger.error("A request failed for an unforeseen reason.", exc_info=error)
    return ApiError(500, "The server failed on this request; its log has the details.", code="internal_error")


async def error_response(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for everything."""
    return to_api_error(error).response()
