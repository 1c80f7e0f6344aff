"""Paged attention, beyond conformance: splits, entries of eight bits, strides, and what no one else may see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.backend import AttentionMetadata
from octavo.backend.tree import tree_map
from octavo_conformance.hostile.batch import Batch, Chunk, lay_out
from octavo_conformance.oracles.attention import attention
from octavo_torch.arrays import to_torch
from octavo_torch.kernels.attention import cost, paged_attention
from octavo_torch.kernels.attention.catalog import specimens
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, Launch, Recorder, run
from octavo_torch.kernels.scaled_kv import FORMATS
from octavo_torch.kernels.targets import TARGETS
from octavo_torch.kernels.tuning import Row, TuningTable

FLOAT32_ERROR = 1e-11  # normalised, mean squared, of the worst head
SMALL = MappingProxyType({"tile": 16, "least_split": 16})
"""Parameters with which short contexts have many tiles and many splits."""


@pytest.fixture
def runtime() -> KernelRuntime:
    """One target: nothing that is interpreted depends on the size of a warp, and the host function asks for no more."""
    return KernelRuntime(replace(TARGETS["sm_90"], interpreted=True), TuningTable())


def tuned(runtime: KernelRuntime, **parameters: int) -> KernelRuntime:
    """The runtime with these parameters for every call."""
    row = Row((), {}, {}, {**SMALL, **parameters})
    return replace(runtime, tuning=TuningTable({"paged_attention": (row,)}))


@dataclass(frozen=True, slots=True)
class Step:
    """A batch with random queries, keys and values; whatever no token owns is NaN."""

    batch: Batch
    meta: AttentionMetadata
    q: torch.Tensor  # [tokens, heads, head_size]
    kv: PagedKV
    sinks: torch.Tensor | None = None
    window: int | None = None
    softcap: float | None = None
    scale: float = 0.3

    def run(self, runtime: KernelRuntime) -> torch.Tensor:
        return paged_attention(runtime, self.q, self.kv, self.meta, self.scale, self.window, self.softcap, self.sinks)

    def error(self, came: torch.Tensor) -> float:
        """Of the real tokens: normalised mean squared error of the worst head, against float64 without pages."""
        keys, values = self._dequantized()
        worst = 0.0
        for sequence, chunk in enumerate(self.batch.chunks):
            slots = self.batch.slots(sequence, np.arange(chunk.context))
            rows = self.batch.rows(sequence)
            right = attention(
                self.q[rows].double().numpy(),
                keys[slots],
                values[slots],
                self.scale,
                self.window,
                self.softcap,
                None if self.sinks is None else self.sinks.numpy(),
            )
            difference = came[rows].double().numpy() - right
            errors = np.square(difference).sum(-1) / np.square(right).sum(-1)
            worst = max(worst, math.inf if np.isnan(errors).any() else float(errors.max()))
        return worst

    def _dequantized(self) -> list[np.ndarray]:
        """Keys and values by slot, float64 [slots, kv_heads, head_size]."""
        sides = []
        for side, scales in ((self.kv.keys, self.kv.key_scales), (self.kv.values, self.kv.value_scales)):
            wide = side.double() if scales is None else side.double() * scales.double()[..., None]
            sides.append(wide.reshape(-1, *side.shape[2:]).numpy())
        return sides


def step(
    chunks: Sequence[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 16,
    block_size: int = 4,
    padded: bool = True,
    sinks: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    seed: int = 0,
) -> Step:
    """chunks: context and queries of each sequence."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    padding = {"pad_tokens": 3, "pad_sequences": 2, "pad_blocks": 1} if padded else {}
    batch = lay_out(rng, [Chunk(*chunk) for chunk in chunks], block_size, **padding)
    meta = tree_map(lambda leaf: to_torch(leaf) if isinstance(leaf, np.ndarray) else leaf, batch.inputs).attention
    q = torch.randn((len(meta.positions), heads, head_size), generator=generator)
    q[batch.tokens :] = torch.nan
    keys, values = (torch.full((batch.num_blocks, block_size, kv_heads, head_size), torch.nan) for _ in range(2))
    for sequence, chunk in enumerate(batch.chunks):
        first = 0 if window is None else max(0, chunk.context - chunk.queries - window + 1)
        slots = torch.from_numpy(batch.slots(sequence, np.arange(first, chunk.context)).astype(np.int64))
        for side in (keys, values):
            side.view(-1, kv_heads, head_size)[slots] = torch.randn(
                (len(slots), kv_heads, head_size), generator=generator
            )
    extra = torch.randn((heads,), generator=generator) if sinks else None
    return Step(batch, meta, q, PagedKV(keys, values), extra, window, softcap)


@dataclass(slots=True)
class Watching:
    """Runs launches and keeps their grids, by function."""

    grids: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def __call__(self, launch: Launch) -> None:
        self.grids.append((launch.kernel.__name__, launch.grid))
        run(launch)


chunks = st.tuples(st.integers(1, 60), st.integers(1, 60)).map(lambda two: (max(two), min(two)))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.lists(chunks, min_size=1, max_size=5),
    heads=st.sampled_from([(4, 2), (3, 1), (2, 2)]),
    head_size=st.sampled_from([8, 16, 24]),
    block_size=st.sampled_from([1, 4, 16, 32]),
    rows=st.sampled_from([16, 32]),
    window=st.none() | st.integers(1, 70),
    softcap=st.none() | st.just(1.5),
    sinks=st.booleans(),
)
def test_ragged_batches_agree_with_attention_in_float64(
    runtime: KernelRuntime,
    batch: list[tuple[int, int]],
    heads: tuple[int, int],
    head_size: int,
    block_size: int,
    rows: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
) -> None:
    call = step(
        batch,
        heads=heads[0],
        kv_heads=heads[1],
        head_size=head_size,
        block_size=block_size,
        window=window,
        softcap=softcap,
        sinks=sinks,
        seed=len(batch),
    )
    assert call.error(call.run(tuned(runtime, rows=rows))) < FLOAT32_ERROR


@pytest.mark.parametrize("most_splits", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("batch", [[(1, 1), (15, 1), (130, 1)], [(130, 1), (70, 33)]], ids=["decode", "mixed"])
def test_any_number_of_splits_gives_the_same_result(
    runtime: KernelRuntime, batch: list[tuple[int, int]], window: int | None, most_splits: int
) -> None:
    call = step(batch, window=window, softcap=2.0, sinks=True)
    watching = Watching()
    came = call.run(replace(tuned(runtime, most_splits=most_splits), launcher=watching))

    asked = min(most_splits, 4) if window else most_splits  # in steps of 16, a window of 50 is not cut into 8
    assert [name for name, _ in watching.grids] == (["attend", "merge"] if asked > 1 else ["attend"])
    assert watching.grids[0][1][2] == asked
    assert call.error(came) < FLOAT32_ERROR


def test_a_long_decode_is_split_beside_a_prompt(runtime: KernelRuntime) -> None:
    """Its tile has one program for each split, and each of them reads a part of the keys."""
    call = step([(130, 1), (20, 20)], padded=False)
    watching = Watching()
    came = call.run(replace(tuned(runtime, most_splits=4), launcher=watching))
    assert watching.grids[0][1][2] == 4
    assert call.error(came) < FLOAT32_ERROR


def test_few_programs_are_split_and_many_are_not(runtime: KernelRuntime) -> None:
    """Of one length: a batch of one is split as far as there are keys, a batch that fills the device is not."""
    splits = []
    for sequences in (1, 64, 4096):
        recorder = Recorder()
        meta = AttentionMetadata(
            *(torch.empty((sequences,), dtype=torch.int32, device="meta") for _ in range(3)),
            query_starts=torch.empty((sequences + 1,), dtype=torch.int32, device="meta"),
            context_lengths=torch.empty((sequences,), dtype=torch.int32, device="meta"),
            block_tables=torch.empty((sequences, 2048), dtype=torch.int32, device="meta"),
            decode_only=True,
        )
        q = torch.empty((sequences, 32, 128), device="meta")
        side = torch.empty((64, 16, 8, 128), device="meta")
        paged_attention(replace(runtime, launcher=recorder), q, PagedKV(side, side), meta, 0.1, None, None, None)
        splits.append(recorder.launches[0].grid[2])
    assert splits[0] == 128  # 32768 keys in the least splits, of 256
    assert splits[0] > splits[1] > splits[2] == 1


def test_a_sequence_has_the_same_bits_in_any_batch_of_as_many_splits(runtime: KernelRuntime) -> None:
    alone = step([(90, 1)], padded=False)
    tables = torch.full((4, 40), 0, dtype=torch.int32)
    tables[2, : alone.meta.block_tables.shape[1]] = alone.meta.block_tables[0]
    meta = replace(
        alone.meta,
        positions=torch.tensor([0, 0, 89, 0], dtype=torch.int32),
        sequences=torch.arange(4, dtype=torch.int32),
        query_starts=torch.arange(5, dtype=torch.int32),
        context_lengths=torch.tensor([1, 1, 90, 1], dtype=torch.int32),
        block_tables=tables,
    )
    batch = replace(alone, meta=meta, q=alone.q.expand(4, -1, -1))
    for most_splits in (1, 4):
        fixed = tuned(runtime, most_splits=most_splits)
        assert torch.equal(batch.run(fixed)[2:3], alone.run(fixed))


@pytest.mark.parametrize("dtype", FORMATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_entry_of_eight_bits_is_read_as_what_it_is(
    runtime: KernelRuntime, dtype: torch.dtype, query_dtype: torch.dtype
) -> None:
    """All finite codes, scales from small to large, NaN in every scale that no one owns."""
    call = step([(40, 1), (37, 9)], sinks=True)
    codes = torch.arange(256, dtype=torch.uint8)
    finite = codes[codes.view(dtype).float().isfinite()]
    generator = torch.Generator().manual_seed(1)

    def side(owned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = ~owned.isnan()
        picked = finite[torch.randint(len(finite), owned.shape, generator=generator)]
        largest = torch.rand(owned.shape[:-1], generator=generator) * 3.0 + 0.01
        scales = torch.where(real.any(-1), largest / FORMATS[dtype].largest, torch.nan)
        return torch.where(real, picked, torch.tensor(0x7F, dtype=torch.uint8)).view(dtype), scales

    keys, key_scales = side(call.kv.keys)
    values, value_scales = side(call.kv.values)
    kv = PagedKV(keys, values, key_scales, value_scales)
    scaled = replace(call, q=call.q.to(query_dtype), kv=kv)
    came = scaled.run(tuned(runtime, most_splits=2))
    # Weights are rounded to 16 bits before they meet the values, and so is the result.
    allowed = FLOAT32_ERROR if query_dtype is torch.float32 else 2e-5
    assert scaled.error(came) < allowed


def _heads_before_slots(side: torch.Tensor) -> torch.Tensor:
    return side.transpose(1, 2).contiguous().transpose(1, 2)


def _one_of_two_in_a_block(side: torch.Tensor) -> torch.Tensor:
    return torch.stack((torch.full_like(side, torch.nan), side), 1)[:, 1]


def _padded_heads(side: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(side, (0, 8), value=torch.nan)[..., : side.shape[-1]]


@pytest.mark.parametrize("arrange", [_heads_before_slots, _one_of_two_in_a_block, _padded_heads])
def test_a_cache_of_other_strides_gives_the_same_bits(
    runtime: KernelRuntime, arrange: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    call = step([(33, 1), (20, 7)])
    kv = PagedKV(arrange(call.kv.keys), arrange(call.kv.values))
    assert kv.keys.stride() != call.kv.keys.stride()
    assert torch.equal(replace(call, kv=kv).run(tuned(runtime)), call.run(tuned(runtime)))


def test_queries_cut_from_a_fused_projection_and_tables_from_a_wider_one_give_the_same_bits(
    runtime: KernelRuntime,
) -> None:
    call = step([(33, 1), (20, 7)])
    fused = torch.cat((call.q, torch.full_like(call.q, torch.nan)), dim=1)[:, : call.q.shape[1]]
    wider = torch.cat((call.meta.block_tables, torch.full((4, 3), 2**30, dtype=torch.int32)), dim=1)
    meta = replace(call.meta, block_tables=wider[:, : call.meta.block_tables.shape[1]])
    cut = replace(call, q=fused, meta=meta)
    assert torch.equal(cut.run(tuned(runtime)), call.run(tuned(runtime)))


@pytest.mark.parametrize("batch", [[(9, 1), (1, 1)], [(9, 1), (20, 20)]], ids=["decode", "mixed"])
def test_padding_gets_zeros(runtime: KernelRuntime, batch: list[tuple[int, int]]) -> None:
    """Not what the result's memory happens to hold, nor what queries of NaN make of it."""
    call = step(batch)
    assert call.q[call.batch.tokens :].isnan().all()
    assert (call.run(tuned(runtime))[call.batch.tokens :] == 0.0).all()


def test_a_step_without_real_tokens_is_all_padding(runtime: KernelRuntime) -> None:
    call = step([(5, 1)])
    nothing = replace(
        call.meta,
        query_starts=torch.zeros_like(call.meta.query_starts),
        context_lengths=torch.zeros_like(call.meta.context_lengths),
    )
    assert (replace(call, meta=nothing).run(tuned(runtime)) == 0.0).all()
    assert replace(call, q=call.q[:0], meta=nothing).run(runtime).shape == (0, 4, 16)


def test_more_sequences_than_are_counted_at_once_find_their_tiles(runtime: KernelRuntime) -> None:
    """`find_tile` counts 256 sequences at a time."""
    call = step([(1, 1)] * 259 + [(6, 3)], heads=1, kv_heads=1, padded=False)
    assert call.error(call.run(tuned(runtime, rows=128))) < FLOAT32_ERROR


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q": torch.zeros((1, 4, 320))}, r"Heads of 320 were asked for; paged attention takes heads of up to 256\."),
        ({"scale": 0.0}, r"a scale above 0, not by 0\.0"),
        ({"kv": PagedKV(torch.zeros((3, 4, 2, 16)), torch.zeros((3, 2, 4, 16)).mT)}, "Keys and values lie alike"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused_in_a_sentence(
    runtime: KernelRuntime, change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(step([(5, 1)]), **change).run(runtime)


@pytest.mark.parametrize("window", [None, 1, 7, 40])
def test_cost_counts_what_is_seen(window: int | None) -> None:
    queries, contexts = (1, 12, 5, 30), (9, 12, 40, 30)
    pairs, slots = 0, 0
    for count, context in zip(queries, contexts, strict=True):
        seen = [
            set(range(0 if window is None else max(0, at - window + 1), at + 1))
            for at in range(context - count, context)
        ]
        pairs += sum(map(len, seen))
        slots += len(set.union(*seen))
    found = cost(queries, contexts, 8, 2, 16, itemsize=2, kv_itemsize=1, window=window, scaled=True)
    assert found.flops == 4 * pairs * 8 * 16
    assert found.read == sum(queries) * 8 * 16 * 2 + 2 * slots * 2 * (16 + 4)
    assert found.written == sum(queries) * 8 * 16 * 2


def test_specimens_need_no_device_and_have_names_of_their_own(runtime: KernelRuntime) -> None:
    names = []
    for specimen in specimens():
        recorder = Recorder()
        specimen.call(replace(runtime, launcher=recorder))
        names.append(specimen.name)
        assert [launch.kernel.__name__ for launch in recorder.launches] in (["attend"], ["attend", "merge"])
    assert len(set(names)) == len(names)
