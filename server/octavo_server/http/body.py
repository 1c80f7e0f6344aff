"""Request bodies: read within a limit, parsed strictly, checked against a type."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from octavo_server.http.errors import ApiError

_CLOSE = {"Connection": "close"}  # the rest of the body is not wanted
READ_TIMEOUT = 60.0  # seconds in which a body must have arrived

T = TypeVar("T")


async def read_json(request: Request, limit: int) -> dict[str, object]:
    """The body as a JSON object. Raises ApiError: 413 over `limit` bytes, 408 too slow, 400 not an object.

    NaN and Infinity are not JSON and are refused, as are numbers that overflow to them.
    """
    body = await _read(request, limit)
    if not body:
        raise ApiError(400, "The body is empty; a JSON object is needed.", code="invalid_json")
    try:
        value = msgspec.json.decode(body)
    except msgspec.ValidationError:
        raise ApiError(400, "A number in the body is too large.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"The body must be a JSON object, and is {_name(value)}.", code="invalid_json")
    return value


def convert(value: dict[str, object], kind: type[T]) -> T:
    """`value` as a `kind`; unknown fields are ignored. Raises ApiError 400, naming the field at fault."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None
    except OverflowError:
        raise ApiError(400, "A number in the body is too large.", code="invalid_type") from None


async def _read(request: Request, limit: int) -> bytes:
    too_large = ApiError(
        413,
        f"The body is larger than {limit} bytes, the most this server reads.",
        code="body_too_large",
        headers=_CLOSE,
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            async for chunk in request.stream():  # counted as it comes: a chunked body declares no length
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not arrive within {READ_TIMEOUT:g} seconds.",
            code="timeout",
            headers=_CLOSE,
        ) from None
    except ClientDisconnect:
        raise ApiError(499, "The client went away.", code="client_gone") from None
    return bytes(body)


_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _field_error(message: str) -> ApiError:
    """A sentence from msgspec's message: "Expected `int | null`, got `str` - at `$.max_tokens`"."""
    problem, _, where = message.partition(" - at ")
    if match := re.fullmatch(r"Object missing required field `(\w+)`", problem):
        return ApiError(400, f"{match[1]} is missing.", param=match[1], code="missing_required_parameter")
    path = ".".join(re.findall(r"`([^`]*)`", where)).removeprefix("$").lstrip(".")
    path = re.sub(r"^key\.\$\.?", "the keys of ", path)
    if match := re.fullmatch(r"Expected `([^`]*)`, got `([^`]*)`", problem):
        wanted = [_WORDS.get(word, word) for word in match[1].split(" | ") if word != "null"]
        problem = f"takes {' or '.join(wanted)}, and got {_WORDS.get(match[2], match[2])}"
    else:
        problem = f"is wrong: {problem[:1].lower()}{problem[1:]}"
    param = re.sub(r"^the keys of ", "", path)
    return ApiError(400, f"{path or 'The body'} {problem}.", param=param or None, code="invalid_type")


def _name(value: object) -> str:
    kinds: dict[type, str] = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
