"""Engines on the host, which pretends to be two devices."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from octavo import LLM
from octavo_conformance.oracles.models import ModelSpec, tiny_model


@pytest.fixture
def open_llm() -> Iterator[Callable[..., LLM]]:
    def open_llm(**settings: Any) -> LLM:
        options = {"cache": "off", "host_devices": "2", **settings.pop("options", {})}
        llm = LLM(
            tiny_model(ModelSpec("llama", "tied")).directory, backend="xla", dtype="float32", kv_cache_memory="4MiB",
            check_integrity=True,
            **{"max_model_len": 512, "max_num_batched_tokens": 64, "max_num_seqs": 8, "warm_up_seconds": 0, **settings},
            backend_options=options,
        )  # fmt: skip
        return opened.enter_context(llm)

    with ExitStack() as opened:
        yield open_llm


@pytest.fixture
def compiled() -> Callable[[LLM], list[weakref.ref[Any]]]:
    """compiled(llm): the programs of its steps, in the order in which they were compiled."""

    def programs(llm: LLM) -> list[weakref.ref[Any]]:
        steps = llm.engine._runner._device._compiler._programs.values()  # type: ignore[attr-defined]
        return [weakref.ref(program.run) for each in steps for _, program in each._programs._entries.values()]

    return programs
