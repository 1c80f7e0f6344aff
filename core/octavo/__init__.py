"""Octavo: a pluggable hardware-backend inference runtime for language models.

    from octavo import LLM, SamplingParams

    llm = LLM("demo")
    print(llm.generate("The capital of France is", SamplingParams(temperature=0.0))[0].outputs[0].text)

The names below load on first use, so that a backend's `import octavo.backend` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.engine import Engine
    from octavo.llm import LLM
    from octavo.outputs import CompletionOutput, Logprob, RequestOutput
    from octavo.sampling.params import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CompletionOutput",
    "Engine",
    "EngineConfig",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

_HOMES = {
    "LLM": "octavo.llm",
    "CompletionOutput": "octavo.outputs",
    "Engine": "octavo.engine",
    "EngineConfig": "octavo.config",
    "Logprob": "octavo.outputs",
    "RequestOutput": "octavo.outputs",
    "SamplingParams": "octavo.sampling.params",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
