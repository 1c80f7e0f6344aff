"""How close the CPU kernels come to the machine: attention against reading its cache, linear against torch.

    python benchmarks/cpu_kernels.py [--kernel avx512] [--quick]

The shapes are SmolLM2-135M's. Medians; the weights of all layers are walked through, so that they come from memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from octavo.backend import AttentionMetadata, DenseWeight, Device, DeviceConfig, DType, KVLayout, WeightRole
from octavo_cpu.plugin import open_cpu

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, SIZE, LAYERS, VOCABULARY = 576, 1536, 9, 3, 64, 30, 49152
LINEARS = {
    "qkv": (HIDDEN, (HEADS + 2 * KV_HEADS) * SIZE),
    "o": (HEADS * SIZE, HIDDEN),
    "gate_up": (HIDDEN, 2 * INTERMEDIATE),
    "down": (INTERMEDIATE, HIDDEN),
}


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_bandwidth(repeats: int) -> float:
    """Bytes a second that a sum over 256 MiB reads."""
    memory = torch.ones(1 << 26)
    return memory.numel() * 4 / median_seconds(memory.sum, repeats)


def attention(
    device: Device, sequences: int, context: int, dtype: DType, queries: int, repeats: int
) -> tuple[float, int]:
    """Seconds of one layer, and the bytes of its cache."""
    layout = KVLayout(12, KV_HEADS, SIZE, 16, dtype)
    width = context // 16
    kv = device.allocate_kv(layout, sequences * width + 1)
    for layer in kv:
        getattr(layer, "memory", layer).normal_()
    rng = np.random.default_rng(0)
    tables = (1 + rng.permutation(sequences * width)).reshape(sequences, width).astype(np.int32)
    tokens = sequences * queries
    meta = AttentionMetadata(
        positions=device.upload(np.tile(np.arange(context - queries, context, dtype=np.int32), sequences)),
        slots=device.upload(np.zeros(tokens, np.int32)),
        sequences=device.upload(np.repeat(np.arange(sequences, dtype=np.int32), queries)),
        query_starts=device.upload(np.arange(sequences + 1, dtype=np.int32) * queries),
        context_lengths=device.upload(np.full(sequences, context, np.int32)),
        block_tables=device.upload(tables),
        decode_only=queries == 1,
    )
    q = torch.randn(tokens, HEADS, SIZE)

    def run() -> None:
        for layer in kv:
            device.ops.paged_attention(q, layer, meta, 0.125)

    cache = device.kv_block_bytes(layout) // layout.layers * sequences * width
    return median_seconds(run, repeats) / layout.layers, cache


def linears(device: Device, repeats: int) -> None:
    ops = device.ops
    plain = {name: [torch.randn(out, inner) for _ in range(LAYERS)] for name, (inner, out) in LINEARS.items()}
    plain["head"] = [torch.randn(VOCABULARY, HIDDEN)]
    packed = {
        name: [device.prepare(DenseWeight(weight), WeightRole.LINEAR) for weight in weights]
        for name, weights in plain.items()
    }
    print(
        f"\nall linear layers of a step, milliseconds (GFLOP/s)\n{'rows':>5} {'kernel':>16} {'torch':>16} {'ratio':>6}"
    )
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 512):
        head_rows = min(rows, 64)
        x = {name: torch.randn(rows, weights[0].shape[1]) for name, weights in plain.items()}
        x["head"] = x["head"][:head_rows]

        def kernel(x: dict[str, torch.Tensor] = x) -> None:
            for name, weights in packed.items():
                for weight in weights:
                    ops.linear(x[name], weight)

        def baseline(x: dict[str, torch.Tensor] = x) -> None:
            for name, weights in plain.items():
                for weight in weights:
                    functional.linear(x[name], weight)

        work = sum(2 * x[name].shape[0] * weight.numel() for name, weights in plain.items() for weight in weights)
        ours, theirs = median_seconds(kernel, repeats), median_seconds(baseline, max(2, repeats // 2))
        cells = [f"{seconds * 1e3:8.1f} ({work / seconds / 1e9:4.0f})" for seconds in (ours, theirs)]
        print(f"{rows:5} {cells[0]:>16} {cells[1]:>16} {theirs / ours:6.2f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kernel", default="auto")
    arguments.add_argument("--quick", action="store_true")
    chosen = arguments.parse_args()
    device = open_cpu(DeviceConfig(kernel=chosen.kernel))
    repeats = 3 if chosen.quick else 9
    bandwidth = read_bandwidth(repeats)
    print(f"{device.info.name}, kernel {device.info.kernel}, {torch.get_num_threads()} threads, ", end="")
    print(f"reads {bandwidth / 1e9:.1f} GB/s")
    print("\npaged attention, 9 heads, 3 KV heads of 64, blocks of 16")
    for sequences, context, queries in ((16, 512, 1), (1, 4096, 1), (64, 512, 1), (4, 512, 128)):
        for dtype in (DType.FLOAT32, DType.BFLOAT16):
            seconds, cache = attention(device, sequences, context, dtype, queries, repeats)
            work = 4 * sequences * HEADS * SIZE * queries * (context - queries / 2)
            print(
                f"{sequences:3} x {context:4}, {queries:3} queries, {dtype.value:8}: {seconds * 1e6:8.0f} us, "
                f"{cache / seconds / 1e9:5.1f} GB/s, {seconds * bandwidth / cache:5.2f} x the time to read the cache, "
                f"{work / seconds / 1e9:5.0f} GFLOP/s"
            )
    linears(device, repeats)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
