"""The offline API spells out every engine option, with the engine's own defaults."""

from __future__ import annotations

import inspect
from dataclasses import fields

from octavo import LLM, EngineConfig


def test_the_keywords_of_llm_are_the_engine_options_with_their_defaults() -> None:
    _, *parameters = inspect.signature(LLM.__init__).parameters.values()
    spelled = {parameter.name: parameter.default for parameter in parameters}
    expected = {field.name: getattr(EngineConfig(), field.name) for field in fields(EngineConfig)}
    assert spelled | {"backend_options": {}} == expected | {"backend_options": {}}
    assert set(spelled) == set(expected)
