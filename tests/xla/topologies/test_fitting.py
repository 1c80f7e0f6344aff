"""A step over a chip's memory: the sentence is made of what the real compiler says, and what it offers does compile."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs that are not there, is not installed")

from topologies.chips import CHIPS, GIB

from octavo_xla.fitting import StepSizes, explanation

from .small_programs import BLOCK, BLOCK_SIZE, matrix, mesh, message, pool

WIDTH = 8192
"""Of the weights, and of a token."""


def step(kv: Any, weights: Any, tokens: Any) -> Any:
    """It writes to the cache, and has activations as wide as the weights have rows."""
    return kv.at[0].set(1), (jnp.tanh(tokens @ weights.T) @ weights)[:, 0]


def refused(blocks: int, weights: int, tokens: int) -> tuple[str, StepSizes]:
    """What is said of a step with so many blocks of KV cache, rows of weights and tokens."""
    on = mesh()
    arguments = pool(blocks, on), matrix(weights, WIDTH, on), matrix(tokens, WIDTH, on)
    sizes = StepSizes.of(tokens, False, [arguments[1]], [arguments[0]], devices=1)
    return message(step, *arguments), sizes


def offered(sentence: str, pattern: str) -> int:
    found = re.search(pattern, sentence)
    assert found, sentence
    return int(found[1].replace(",", ""))


def test_the_largest_kv_cache_that_is_offered_compiles_and_a_larger_one_does_not() -> None:
    weights, tokens = 65536, 4096
    said, sizes = refused(16 * GIB // BLOCK, weights, tokens)
    sentence = explanation(said, sizes)
    assert sentence is not None
    assert "15.75 GiB" in sentence
    blocks = offered(sentence, r"a KV cache of [\d,]+ tokens \(kv_cache_memory = (\d+)\) would fit") // BLOCK
    assert offered(sentence, r"; a KV cache of ([\d,]+) tokens") == (blocks - 1) * BLOCK_SIZE
    assert refused(blocks, weights, tokens)[0] == ""
    assert refused(blocks + 128 * (1 << 20) // BLOCK, weights, tokens)[0] != ""


def test_where_activations_are_too_large_the_steps_that_are_offered_compile() -> None:
    blocks, weights = 12 * GIB // BLOCK, 65536
    said, sizes = refused(blocks, weights, 32768)
    sentence = explanation(said, sizes)
    assert sentence is not None
    tokens = offered(sentence, r"steps of about (\d+) tokens")
    assert tokens < 32768
    assert "(max_num_batched_tokens)" in sentence
    assert "(max_num_seqs)" in str(explanation(said, replace(sizes, decode_only=True)))
    assert refused(blocks, weights, tokens)[0] == ""


def test_where_no_kv_cache_fits_beside_the_activations_shorter_steps_are_offered() -> None:
    said, sizes = refused(2 * GIB // BLOCK, 65536, 131072)
    sentence = explanation(said, sizes)
    assert sentence is not None
    assert "kv_cache_memory" not in sentence
    assert refused(sizes.blocks, 65536, offered(sentence, r"steps of about (\d+) tokens"))[0] == ""


def test_weights_over_the_memory_name_the_devices_that_they_need() -> None:
    said, sizes = refused(64, 20 * GIB // (2 * WIDTH), 8)
    assert explanation(said, sizes) == (
        "The weights alone take 20.00 GiB of the 15.75 GiB that each device has: at least 2 devices "
        "(tensor_parallel_size), or weights of fewer bits, are needed."
    )


@pytest.mark.parametrize("chip", CHIPS)
def test_the_memory_of_a_chip_is_what_its_compiler_says(chip: str) -> None:
    on = mesh(chip)
    said = message(lambda kv: kv.at[0].set(1), pool(128 * GIB // BLOCK, on))
    found = re.search(r"available HBM \(([\d.]+)G\)", said)
    assert found, said
    assert CHIPS[chip].hbm == int(float(found[1]) * GIB)


def test_a_kernel_over_its_vector_memory_is_not_taken_for_a_model_over_the_memory() -> None:
    def kernel(x: Any, out: Any, scratch: Any) -> None:
        scratch[0] = x[...]
        out[...] = scratch[0]

    def oversized(x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=shape, scratch_shapes=[pltpu.VMEM((4096, *x.shape), x.dtype)])(x)

    on = mesh()
    said = message(oversized, matrix(256, 256, on))
    assert "vmem" in said
    sizes = StepSizes.of(8, True, [matrix(8, 8, on)], [pool(8, on)], devices=1)
    assert explanation(said, sizes) is None
