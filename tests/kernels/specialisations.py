"""Prints what Triton would compile while lengths grow; run by `test_specialisation`, where Triton compiles.

For each scenario and function: `variants`, the distinct compile-time constants, options and dtypes it was launched
with, and `keys`, what its launches differ in all together: also in what the just-in-time compiler reads off arguments
(the width of integers, divisibility by 16, equality to 1).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.backend import (
    Activation,
    AttentionMetadata,
    DenseWeight,
    ExpertWeights,
    LoRABank,
    QuantizedWeight,
    RotaryTable,
)
from octavo_torch.kernels.ahead_of_time.rows import vendor_tables
from octavo_torch.kernels.ahead_of_time.specialise import specialised
from octavo_torch.kernels.catalog import tunables
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, Launch, Recorder
from octavo_torch.kernels.quantized_linear import pack
from octavo_torch.kernels.targets import TARGETS
from octavo_torch.kernels.tuning import TuningTable
from octavo_torch.triton_ops import TritonOps

TOKENS = range(1, 778)
SEQUENCES = range(1, 257)
BLOCK_SIZE = 16
WIDTHS = range(1, 5000 // BLOCK_SIZE + 2)  # of block tables, for contexts of 1 to 5000 tokens
HEADS, KV_HEADS, HEAD_SIZE, HIDDEN, INTERMEDIATE = 32, 8, 128, 4096, 14336
EXPERTS, ADAPTERS, RANK, VOCABULARY = 8, 4, 16, 128256


@dataclass(frozen=True)
class Scenario:
    """Calls of an operation that differ in one length."""

    name: str
    calls: Callable[[TritonOps], Iterator[Any]]


def main() -> None:
    counts = {}
    for arch in ("sm_90", "gfx942"):
        target = TARGETS[arch]
        tables = vendor_tables()
        table = TuningTable.read(tables[target.generator], tunables())
        for scenario in SCENARIOS:
            recorder = Recorder()
            for _ in scenario.calls(TritonOps(KernelRuntime(target, table, recorder))):
                pass
            counts[f"{scenario.name} on {arch}"] = counted(recorder.launches, arch)
    json.dump(counts, sys.stdout)


def counted(launches: list[Launch], arch: str) -> Mapping[str, Mapping[str, int]]:
    variants, keys = defaultdict(set), defaultdict(set)
    for launch in launches:
        made = specialised(launch, TARGETS[arch])
        name = f"{launch.kernel.fn.__module__.rpartition('.')[2]}.{made.function}"
        types = tuple(kind for _, kind, _ in made.dynamic if kind.startswith("*"))
        variants[name].add((made.constants, made.options, types))
        keys[name].add((made.constants, made.options, made.dynamic))
    return {name: {"variants": len(variants[name]), "keys": len(keys[name])} for name in keys}


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int32)


def cache(dtype: torch.dtype = torch.bfloat16, blocks: int = 60000) -> PagedKV:
    """Of 2 GB a side and more, as on a card that serves."""
    shape = (blocks, BLOCK_SIZE, KV_HEADS, HEAD_SIZE)
    scales = [empty(*shape[:3], dtype=torch.float32) if dtype.itemsize == 1 else None for _ in range(2)]
    return PagedKV(empty(*shape, dtype=dtype), empty(*shape, dtype=dtype), *scales)


def attention(ops: TritonOps, tokens: int, sequences: int, width: int, decode: bool, **features: Any) -> Any:
    fused = empty(tokens, HEADS + 2 * KV_HEADS, HEAD_SIZE)
    meta = AttentionMetadata(
        ints(tokens), ints(tokens), ints(tokens), ints(sequences + 1), ints(sequences), ints(sequences, width), decode
    )
    features.setdefault("kv", cache())
    return ops.paged_attention(fused[:, :HEADS], meta=meta, scale=0.125, **features)


def decode_contexts(ops: TritonOps) -> Iterator[Any]:
    return (attention(ops, 4, 4, width, True) for width in WIDTHS)


def decode_windows(ops: TritonOps) -> Iterator[Any]:
    return (attention(ops, 4, 4, width, True, window=1024, softcap=50.0, sinks=empty(HEADS)) for width in WIDTHS)


def decode_scaled(ops: TritonOps) -> Iterator[Any]:
    return (attention(ops, 4, 4, width, True, kv=cache(torch.float8_e4m3fn)) for width in WIDTHS)


def decode_sequences(ops: TritonOps) -> Iterator[Any]:
    return (attention(ops, count, count, 128, True) for count in SEQUENCES)


def prefill_tokens(ops: TritonOps) -> Iterator[Any]:
    return (attention(ops, tokens, 1, -(-tokens // BLOCK_SIZE), False) for tokens in TOKENS)


def chunk_contexts(ops: TritonOps) -> Iterator[Any]:
    return (attention(ops, 512, 2, width, False) for width in WIDTHS)


def mixed_sequences(ops: TritonOps) -> Iterator[Any]:
    return (attention(ops, count + 256, count + 1, 77, False) for count in SEQUENCES)


def cache_blocks(ops: TritonOps) -> Iterator[Any]:
    return (attention(ops, 4, 4, 16, True, kv=cache(blocks=60000 + more)) for more in range(50))


def norms(ops: TritonOps) -> Iterator[Any]:
    weight, head = empty(HIDDEN), empty(HEAD_SIZE)
    for tokens in TOKENS:
        yield ops.rms_norm(empty(tokens, HIDDEN), weight, 1e-5, empty(tokens, HIDDEN))
        yield ops.rms_norm(empty(tokens, HEADS + 2 * KV_HEADS, HEAD_SIZE)[:, :HEADS], head, 1e-5)


def rotaries(ops: TritonOps) -> Iterator[Any]:
    table, kv = RotaryTable(empty(8192, HEAD_SIZE, dtype=torch.float32)), cache()
    for tokens in TOKENS:
        fused = empty(tokens, HEADS + 2 * KV_HEADS, HEAD_SIZE)
        q, k, v = fused[:, :HEADS], fused[:, HEADS : HEADS + KV_HEADS], fused[:, HEADS + KV_HEADS :]
        yield ops.rotary_write_kv(q, k, v, ints(tokens), table, kv, ints(tokens))
        yield ops.rotary(q, k, ints(tokens), table)
        yield ops.write_kv(kv, k, v, ints(tokens))


def activations(ops: TritonOps) -> Iterator[Any]:
    return (ops.gated_activation(empty(tokens, 2 * INTERMEDIATE), Activation.SILU) for tokens in TOKENS)


def candidates(ops: TritonOps) -> Iterator[Any]:
    return (ops.top_k(empty(rows, VOCABULARY, dtype=torch.float32), 64) for rows in SEQUENCES)


def probabilities(ops: TritonOps) -> Iterator[Any]:
    logits = ((empty(rows, VOCABULARY, dtype=torch.float32), empty(rows, dtype=torch.float32)) for rows in SEQUENCES)
    return (ops.probability_units(*row) for row in logits)


def quantized(ops: TritonOps) -> Iterator[Any]:
    codes, scales = empty(HIDDEN, HIDDEN // 2, dtype=torch.uint8), empty(HIDDEN, HIDDEN // 128, dtype=torch.float32)
    weight = pack(QuantizedWeight(codes, scales, None, bits=4, group_size=128))
    return (ops.linear(empty(tokens, HIDDEN), weight) for tokens in TOKENS)


def experts(ops: TritonOps) -> Iterator[Any]:
    weights = ExpertWeights(
        DenseWeight(empty(EXPERTS, 2 * INTERMEDIATE, HIDDEN)), DenseWeight(empty(EXPERTS, HIDDEN, INTERMEDIATE))
    )
    return (
        ops.mixture_of_experts(empty(tokens, HIDDEN), empty(tokens, EXPERTS, dtype=torch.float32), weights, 2)
        for tokens in TOKENS
    )


def adapters(ops: TritonOps) -> Iterator[Any]:
    bank = LoRABank(empty(ADAPTERS, RANK, HIDDEN), empty(ADAPTERS, HIDDEN, RANK))
    return (ops.lora(empty(tokens, HIDDEN), empty(tokens, HIDDEN), bank, ints(tokens)) for tokens in TOKENS)


def more_adapters(ops: TritonOps) -> Iterator[Any]:
    for count in range(1, 65):
        bank = LoRABank(empty(count, RANK, HIDDEN), empty(count, HIDDEN, RANK))
        yield ops.lora(empty(8, HIDDEN), empty(8, HIDDEN), bank, ints(8))


@triton.jit
def careless_argument(x, count, BLOCK: tl.constexpr):  # noqa: N803
    column = tl.arange(0, BLOCK)
    tl.store(x + column, 0.0, mask=column < count)


@triton.jit(do_not_specialize=["count"])
def careless_constant(x, count, BLOCK: tl.constexpr):  # noqa: N803
    column = tl.arange(0, BLOCK)
    tl.store(x + column, 0.0, mask=column < count)


def careless_arguments(ops: TritonOps) -> Iterator[Any]:
    for tokens in TOKENS:
        arguments = {"x": empty(tokens), "count": tokens, "BLOCK": 1024}
        yield ops.runtime.launch(careless_argument, (1,), arguments, num_warps=4)


def careless_constants(ops: TritonOps) -> Iterator[Any]:
    for tokens in TOKENS:
        arguments = {"x": empty(tokens), "count": tokens, "BLOCK": tokens}
        yield ops.runtime.launch(careless_constant, (1,), arguments, num_warps=4)


SCENARIOS = (
    Scenario("decode, contexts", decode_contexts),
    Scenario("decode with window, softcap and sinks, contexts", decode_windows),
    Scenario("decode of scaled caches, contexts", decode_scaled),
    Scenario("decode, sequences", decode_sequences),
    Scenario("prefill, tokens", prefill_tokens),
    Scenario("chunked prefill, contexts", chunk_contexts),
    Scenario("mixed, sequences", mixed_sequences),
    Scenario("decode, blocks of the cache", cache_blocks),
    Scenario("norm, tokens", norms),
    Scenario("rotary and write, tokens", rotaries),
    Scenario("activation, tokens", activations),
    Scenario("top-k, rows", candidates),
    Scenario("probabilities, rows", probabilities),
    Scenario("quantized linear, tokens", quantized),
    Scenario("experts, tokens", experts),
    Scenario("LoRA, tokens", adapters),
    Scenario("LoRA, adapters", more_adapters),
    Scenario("careless argument", careless_arguments),
    Scenario("careless constant", careless_constants),
)


if __name__ == "__main__":
    main()
