"""A step that does not fit into a device's memory: what the compiler says of it, in words that somebody can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

_HBM = re.compile(
    r"memory required for HLO temporaries \((?P<needed>[\d.]+)(?P<needed_unit>[KMGT])\)"
    r" exceeds available HBM \((?P<there>[\d.]+)(?P<there_unit>[KMGT])\)"
)
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_MARGIN = 32 << 20
"""Bytes left free by what is called fitting: the compiler rounds its figures, and does not count the program itself."""

_FEWEST_TOKENS = 8
_FEWEST_BLOCKS = 2
"""Below these a step, or a KV cache, is not worth an offer."""


@dataclass(frozen=True, slots=True)
class StepSizes:
    """What is known of a step, in bytes on each of its devices.

    tokens: of the step, padding included. decode_only: one of each sequence. blocks: of the KV cache, the null block
    included, each of `block_size` tokens.
    """

    tokens: int
    decode_only: bool
    weights: int
    kv: int
    blocks: int
    block_size: int
    devices: int

    @classmethod
    def of(cls, tokens: int, decode_only: bool, weights: Sequence[Any], kv: Sequence[Any], devices: int) -> StepSizes:
        """weights, kv: the arrays of a program, with their shardings; kv as `PagedKV` has them."""
        blocks, _, block_size, _ = kv[0].shape
        return cls(tokens, decode_only, device_bytes(weights), device_bytes(kv), blocks, block_size, devices)


def device_bytes(arrays: Iterable[Any]) -> int:
    """Bytes that arrays take on each device they lie on."""
    return sum(prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize for array in arrays)


def explanation(message: str, step: StepSizes) -> str | None:
    """What the compiler's message comes to: the largest KV cache and the largest step that fit, as one sentence.

    None for a message that is not about a device's main memory. What is neither weights nor KV cache is taken to grow
    with the tokens of a step, which makes the largest step an estimate; the largest KV cache is none.
    """
    found = _HBM.search(message)
    if found is None:
        return None
    needed = float(found["needed"]) * _UNITS[found["needed_unit"]]
    there = float(found["there"]) * _UNITS[found["there_unit"]]
    room = there - _MARGIN - step.weights
    if room <= 0:
        least = ceil(step.weights * step.devices / (there - _MARGIN))
        return (
            f"The weights alone take {_gib(step.weights)} of the {_gib(there)} that each device has: at least {least} "
            f"devices (tensor_parallel_size), or weights of fewer bits, are needed."
        )
    activations = max(0.0, needed - step.weights - step.kv)
    asked = (
        f"A step of {step.tokens} tokens takes {_gib(needed)} of the {_gib(there)} that each device has: "
        f"{_gib(step.weights)} are weights, {_gib(step.kv)} a KV cache of {_tokens(step, step.blocks):,} tokens"
    )
    offers = [_largest_cache(step, room - activations), _largest_step(step, room - step.kv, activations)]
    fits = " or ".join(offer for offer in offers if offer)
    if fits:
        return f"{asked}; {fits} would fit."
    if shorter := _largest_step(step, room - _FEWEST_BLOCKS * _block_bytes(step), activations):
        return f"{asked}; {shorter} and a small KV cache would fit."
    return f"{asked}; more devices (tensor_parallel_size), or weights of fewer bits, are needed."


def _largest_cache(step: StepSizes, room: float) -> str:
    """As part of a sentence; "" where none fits."""
    block = _block_bytes(step)
    blocks = int(room // block)
    if blocks < _FEWEST_BLOCKS:
        return ""
    return f"a KV cache of {_tokens(step, blocks):,} tokens (kv_cache_memory = {blocks * block})"


def _largest_step(step: StepSizes, room: float, activations: float) -> str:
    """Of the sizes that steps are padded to, as part of a sentence; "" where none fits."""
    tokens = step.tokens // 2
    while tokens >= _FEWEST_TOKENS and activations * tokens / step.tokens > room:
        tokens //= 2
    if tokens < _FEWEST_TOKENS:
        return ""
    return f"steps of about {tokens} tokens ({'max_num_seqs' if step.decode_only else 'max_num_batched_tokens'})"


def _block_bytes(step: StepSizes) -> int:
    return step.kv // step.blocks


def _tokens(step: StepSizes, blocks: int) -> int:
    """That so many blocks hold; the null block holds none."""
    return (blocks - 1) * step.block_size


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.2f} GiB"
