"""Chat templates: the Jinja program in a checkpoint that writes messages the way its model was trained to read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import InvalidRequestError, ModelError


class ChatTemplate:
    """A template, compiled once. It runs in Jinja's sandbox: it comes from whoever made the checkpoint.

    special_tokens: what the template may refer to by name (bos_token, eos_token ...).
    Raises ModelError for a template that is no valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"The model's chat template is not valid Jinja: {error}.") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages. variables: what else the template is given (tools, enable_thinking
        ...).

        Raises InvalidRequestError when the template fails, with what it says: most templates refuse some
        orders of roles.
        """
        given = {"tools": None, "documents": None} | self._special_tokens | dict(variables or {})
        given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(given)
        except Exception as error:  # whatever the template's own code runs into
            raise InvalidRequestError(
                f"The model's chat template does not take these messages: {error}",
                param="messages",
                code="chat_template",
            ) from None


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model wrote, for training; here the block is its content."""

    tags = {"generation"}  # noqa: RUF012, the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """The same dialect that transformers gives templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
