"""Block tables are wider than the widest so far, steps no wider than their tokens, and no program is kept in vain."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.backend import AttentionMetadata
from octavo_xla.kernels.tiling import SMEM_TABLE_BYTES
from octavo_xla.tables import TableSize, coarse_width

GREEDY = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


def _meta(tokens: int, sequences: int, blocks: int) -> AttentionMetadata:
    """A step whose sequences have a token each; the last one has the rest."""
    starts = np.append(np.arange(sequences, dtype=np.int32), np.int32(tokens))
    of_token = np.minimum(np.arange(tokens), sequences - 1).astype(np.int32)
    lengths = np.full(sequences, blocks * 16, np.int32)
    tables = np.ones((sequences, blocks), np.int32)
    return AttentionMetadata(of_token, of_token, of_token, starts, lengths, tables, tokens == sequences)


@pytest.mark.parametrize(
    ("tokens", "sequences", "widened"),
    [
        (8, 8, (8, 128)),  # decodes: as many as tokens
        (512, 8, (64, 128)),  # a prefill may come with every other sequence's decode
        (16, 8, (16, 128)),
        (64, 64, (64, 128)),
    ],
)
def test_a_step_is_as_wide_as_the_widest_so_far_but_no_wider_than_its_tokens(
    tokens: int, sequences: int, widened: tuple[int, int]
) -> None:
    tables = TableSize()
    tables.grow(_meta(64, 64, 8))
    tables.grow(_meta(8, 8, 32))
    meta = _meta(tokens, sequences, 8)
    wide = tables.widened(meta)
    assert wide.block_tables.shape == widened
    assert (len(wide.context_lengths), len(wide.query_starts)) == (widened[0], widened[0] + 1)
    np.testing.assert_array_equal(wide.block_tables[:sequences, :8], meta.block_tables)
    assert not wide.block_tables[sequences:].any()  # the null block, for sequences without tokens or context
    assert not wide.block_tables[:, 8:].any()
    assert not wide.context_lengths[sequences:].any()
    assert (wide.query_starts[sequences:] == tokens).all()


@pytest.mark.parametrize(
    ("blocks", "sequences", "width"),
    [
        (1, 8, 128),
        (128, 8, 128),
        (129, 8, 1024),
        (1025, 8, 8192),
        (129, 256, 512),  # 1,024 columns would be a second pass
        (600, 256, 600),  # two passes whatever is done
        (8192, 8, 8192),
        (20_000, 8, 20_000),
        (1, 4096, 32),
    ],
)
def test_tables_widen_coarsely_where_that_is_no_other_pass_of_the_attention(
    blocks: int, sequences: int, width: int
) -> None:
    assert coarse_width(blocks, sequences) == width
    assert _passes(width, sequences) == _passes(blocks, sequences)


def _passes(width: int, sequences: int) -> int:
    return -(-sequences // (SMEM_TABLE_BYTES // (4 * width)))


def test_a_context_that_grows_compiles_nothing(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm(block_size=4)
    llm.generate([[5] * 60], GREEDY)
    before = llm.engine._runner._device.compilations.count
    llm.generate([[6] * 60], replace(GREEDY, max_tokens=440))  # from 15 blocks to 125
    assert llm.engine._runner._device.compilations.count == before


def test_programs_of_smaller_tables_are_let_go(
    open_llm: Callable[..., LLM], compiled: Callable[[LLM], list[weakref.ref[Any]]]
) -> None:
    llm = open_llm(block_size=2)
    llm.generate([[5] * 8], GREEDY)
    narrow = compiled(llm)
    assert len(narrow) == 2
    llm.generate([[5] * 300], GREEDY)  # 152 blocks
    gc.collect()
    assert all(program() is None for program in narrow)
    before = llm.engine._runner._device.compilations.count
    llm.generate([[6] * 300], GREEDY)
    assert llm.engine._runner._device.compilations.count == before


def test_decodes_of_a_few_keep_their_program_when_many_come(
    open_llm: Callable[..., LLM], compiled: Callable[[LLM], list[weakref.ref[Any]]]
) -> None:
    llm = open_llm(max_num_seqs=32, max_model_len=128)
    llm.generate([[5] * 30], GREEDY)
    prefill, decode = compiled(llm)
    llm.generate([[5] * 4] * 20, GREEDY)  # 32 sequences, with padding
    gc.collect()
    assert decode() is not None
    assert prefill() is None
    before = llm.engine._runner._device.compilations.count
    llm.generate([[6] * 4] * 4, GREEDY)
    assert llm.engine._runner._device.compilations.count <= before + 1  # the prefill, and not the decodes
