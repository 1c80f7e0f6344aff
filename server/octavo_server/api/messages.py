"""Chat messages as clients send them, made into what a chat template reads: a role and plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo_server.http.errors import shown

MAX_MESSAGES = 4096

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Raises InvalidRequestError for a role or a content that a text model cannot take."""
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequestError(
            f"messages has {len(messages)} messages; at most {MAX_MESSAGES} are possible.", param="messages"
        )
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(message: Mapping[str, Any], where: str) -> dict[str, str]:
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise InvalidRequestError(f"{where} holds a tool call; this server offers no tools.", param=where)
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequestError(
            f"{where}.role must be one of {', '.join(_ROLES)}, and is {shown(str(role))}.", param=f"{where}.role"
        )
    return {"role": _ROLES[role], "content": _text(message.get("content"), f"{where}.content")}


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(f"{where} takes a string or a list of text parts.", param=where)
    return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part(part: object, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("image_url", "input_audio", "file", "video_url", "audio_url"):
        raise InvalidRequestError(f"{where} is of type {kind}; this model reads text only.", param=where)
    raise InvalidRequestError(f'{where} must be {{"type": "text", "text": ...}}.', param=where)
