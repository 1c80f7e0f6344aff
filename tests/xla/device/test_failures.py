"""What fails: a step that does not compile is not compiled again, and a cache that is gone is a device that is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.backend import (
    DeviceConfig,
    DeviceLostError,
    DeviceOutOfMemoryError,
    DType,
    KVCache,
    KVLayout,
)
from octavo.backend.discovery import open_device
from octavo.packing import StepShape
from octavo_xla.eager import EagerOps
from octavo_xla.ops import XlaOps

GREEDY = SamplingParams(temperature=0.0)

TOO_LARGE = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. The arguments and the memory required for HLO temporaries "
    "(20.00G) exceeds available HBM (15.75G)."
)


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (TOO_LARGE, DeviceOutOfMemoryError, r"A step of 8 tokens takes 20\.00 GiB of the 15\.75 GiB"),
        ("INTERNAL: Mosaic failed", jax.errors.JaxRuntimeError, "INTERNAL: Mosaic failed"),
    ],
)
def test_a_step_that_does_not_compile_is_refused_at_once_the_next_time(
    words: str, error: type[Exception], sentence: str, open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_llm().engine._runner
    compilations: Any = runner._device.compilations  # type: ignore[attr-defined]
    asked: list[str] = []
    compiled = compilations.compile

    def compile(name: str, *rest: Any) -> Any:
        asked.append(name)
        if name.startswith("8 tokens"):
            raise jax.errors.JaxRuntimeError(words)
        return compiled(name, *rest)

    monkeypatch.setattr(compilations, "compile", compile)
    for _ in range(3):
        with pytest.raises(error, match=sentence):
            runner.rehearse(StepShape(8, 1, 8), GREEDY)
    assert asked == ["8 tokens, 8 rows, decodes, tables of 8 x 128"]
    runner.rehearse(StepShape(1, 16, 8), GREEDY)  # another step
    assert len(asked) == 2


class _Failing(XlaOps):
    """copy_blocks fails: while it is traced for one block, while it runs for more."""

    def copy_blocks(self, kv: KVCache, source: Any, target: Any) -> KVCache:
        if len(source) == 1:
            raise ValueError("one block")

        def fail(_: np.ndarray) -> np.ndarray:
            raise RuntimeError("no block")

        target = jax.pure_callback(fail, jax.ShapeDtypeStruct(target.shape, jnp.int32), target)
        return super().copy_blocks(kv, source, target)


def test_an_operation_that_fails_with_the_cache_has_lost_the_device() -> None:
    device: Any = open_device(DeviceConfig(backend="xla", options={"cache": "off", "host_devices": "2"})).device
    ops = EagerOps(_Failing(), device.mesh, device.compilations)
    kv = device.allocate_kv(KVLayout(2, 2, 16, 16, DType.FLOAT32), 4)
    one, two = (device.upload(np.ones(count, np.int32)) for count in (1, 2))
    with pytest.raises(ValueError, match="one block"):
        ops.copy_blocks(kv, one, one)
    assert not kv[0].data.is_deleted()  # nothing ran: the cache is as it was
    with pytest.raises(DeviceLostError, match="copy_blocks outside of a step failed after it had taken the KV cache"):
        ops.copy_blocks(kv, two, two)
