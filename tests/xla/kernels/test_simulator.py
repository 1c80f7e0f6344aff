"""The kernels under the simulator of a TPU's memories, which looks for races and for accesses out of bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from octavo_xla.kernels.attention import attention as public
from octavo_xla.kernels.attention import paged_attention
from octavo_xla.kernels.attention.sizes import TileSizes
from octavo_xla.kernels.attention.source import Source
from octavo_xla.kernels.write_kv import Groups

from .steps import Step, step
from .test_write_kv import check, write

BATCH = ((1, 1), (70, 1), (20, 20))
SLOTS = (*range(37, 60), 250, 251, 200, 130, 0, 0)


def watching(when: Literal["eager", "on_wait"] = "on_wait") -> Any:
    """A simulator with both detectors. when: copies are made, as soon as they start or as late as they may."""
    return pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise", dma_execution_mode=when)


def attend(call: Step, interpret: Any) -> jax.Array:
    arguments = (call.scale, call.window, call.softcap, call.sinks)
    return paged_attention(call.q, call.kv, call.meta, *arguments, interpret=interpret).block_until_ready()


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few chunks for each sequence and a few tiles for each chunk of a prompt."""
    monkeypatch.setattr(public, "tile_sizes", lambda geometry, tokens: TileSizes(min(tokens, 16), 2, 3))


@dataclass(frozen=True, slots=True)
class Impatient:
    """A copy that nobody waits for."""

    copy: Any

    def start(self) -> None:
        self.copy.start()

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_attention_has_no_race_and_stays_within_bounds(kv_dtype: str, races: Callable[[], bool]) -> None:
    call = step(BATCH, heads=2, kv_heads=1, kv_dtype=kv_dtype, block_size=32, window=50, sinks=True)
    assert call.error(attend(call, watching())) < 1e-11
    assert not races()


def test_attention_without_its_waits_is_caught(monkeypatch: pytest.MonkeyPatch, races: Callable[[], bool]) -> None:
    each_block = Source._each_block

    def hasty(self: Source, item: Any, chunk: Any, buffer: Any, do: Callable[[Any], None]) -> None:
        each_block(self, item, chunk, buffer, lambda copy: do(Impatient(copy)))

    monkeypatch.setattr(Source, "_each_block", hasty)
    attend(step([(40, 1)], heads=2, kv_heads=1), watching("eager"))
    assert races()


def test_fetching_into_the_buffer_in_use_changes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies signal the same semaphore as those that are waited for: no race to the detector, but wrong."""
    opened = Source.open

    def greedy(self: Source, item: Any, end: Any) -> None:
        opened(self, item, end)
        self.fetch(end)

    call = step([(200, 1)], heads=2, kv_heads=1)
    monkeypatch.setattr(Source, "open", greedy)
    assert call.error(attend(call, watching("eager"))) > 1e-3


def test_a_block_beyond_the_pool_is_caught() -> None:
    call = step([(40, 1)], heads=2, kv_heads=1)
    meta = replace(call.meta, block_tables=call.meta.block_tables.at[0, 1].set(10_000))
    with pytest.raises(Exception, match=r"[Oo]ut-of-bounds"):
        attend(replace(call, meta=meta), watching())


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_write_has_no_race_and_stays_within_bounds(dtype: str, races: Callable[[], bool]) -> None:
    check(write(SLOTS, dtype, block_size=32, kv_heads=1, interpret=watching()), SLOTS, 32)
    assert not races()


def test_a_write_that_does_not_wait_for_what_it_read_is_caught(
    monkeypatch: pytest.MonkeyPatch, races: Callable[[], bool]
) -> None:
    reading = Groups.reading
    monkeypatch.setattr(Groups, "reading", lambda self, tile, group: Impatient(reading(self, tile, group)))
    write(SLOTS, "bfloat16", kv_heads=1, interpret=watching("eager"))
    assert races()
