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
from octavo_xla.kernels.copy_blocks import Pairs
from octavo_xla.kernels.write_kv import Groups

from .steps import Step, step
from .test_copy_blocks import OVERLAPPING, caches, copied
from .test_copy_blocks import check as check_copies
from .test_write_kv import check, write

BATCH = ((1, 1), (70, 1), (20, 20))
SLOTS = (*range(37, 60), 250, 251, 200, 130, 0, 0)


def watching(when: Literal["eager", "on_wait"] = "on_wait", cores: int = 1) -> Any:
    """A simulator with both detectors. when: copies are made, as soon as they start or as late as they may."""
    return pltpu.InterpretParams(
        detect_races=True, out_of_bounds_reads="raise", dma_execution_mode=when, num_cores_or_threads=cores
    )


def attend(call: Step, interpret: Any, cores: int = 1) -> jax.Array:
    arguments = (call.scale, call.window, call.softcap, call.sinks)
    return paged_attention(call.q, call.kv, call.meta, *arguments, cores=cores, interpret=interpret).block_until_ready()


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


@pytest.mark.parametrize(("queries", "cores"), [(8, 2), (20, 2), (50, 3)])
def test_a_core_without_a_tile_writes_over_nobody_elses(queries: int, cores: int, races: Callable[[], bool]) -> None:
    """One tile for two cores; two; and four for three, which take two each."""
    call = step([(queries, queries)], heads=2, kv_heads=1, pad_tokens=0, pad_sequences=0)
    assert call.error(attend(call, watching("eager", cores), cores)) < 1e-11
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


def test_copies_of_blocks_have_no_race_and_stay_within_bounds(races: Callable[[], bool]) -> None:
    kv = caches("int8")
    check_copies(kv, copied(kv, OVERLAPPING, watching()), OVERLAPPING)
    assert not races()


def test_copies_that_do_not_wait_for_what_they_read_are_caught(
    monkeypatch: pytest.MonkeyPatch, races: Callable[[], bool]
) -> None:
    reading = Pairs.reading
    monkeypatch.setattr(Pairs, "reading", lambda self, pair: [Impatient(copy) for copy in reading(self, pair)])
    copied(caches("bfloat16"), OVERLAPPING, watching("eager"))
    assert races()


def test_a_copy_from_beyond_the_pool_is_caught() -> None:
    with pytest.raises(Exception, match=r"[Oo]ut-of-bounds"):
        copied(caches("bfloat16"), [(10_000, 3)], watching())
