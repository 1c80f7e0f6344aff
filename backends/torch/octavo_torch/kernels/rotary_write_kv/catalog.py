"""What the catalog says of the fused operation, and the calls it is compiled for."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from octavo.backend import Ops, RotaryTable
from octavo_torch.kernels.kernel import Kernel, Specimen
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.rotary_write_kv.operation import TUNABLE, rotary, rotary_write_kv, write_kv
from octavo_torch.kernels.scaled_kv import FORMATS


def specimens() -> Iterator[Specimen]:
    """Every cache dtype at head size 128, other head sizes, pairs and parts; and the two halves on their own."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield _specimen(dtype, dtype, 128, 128)
    for kv_dtype in FORMATS:
        yield _specimen(torch.bfloat16, kv_dtype, 128, 128)
    yield _specimen(torch.float16, torch.float8_e4m3fn, 64, 64)
    for head_size, rotary_size, interleaved in ((64, 64, False), (80, 32, False), (256, 256, False), (128, 64, True)):
        yield _specimen(torch.bfloat16, torch.bfloat16, head_size, rotary_size, interleaved)
    yield _specimen(torch.bfloat16, torch.bfloat16, 128, 128, only="rotary")
    yield _specimen(torch.bfloat16, torch.float8_e4m3fn, 128, 0, only="write_kv")


def _specimen(
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    head_size: int,
    rotary_size: int,
    interleaved: bool = False,
    only: str = "",
    tokens: int = 256,
    heads: int = 32,
    kv_heads: int = 8,
) -> Specimen:
    def call(runtime: KernelRuntime) -> None:
        def empty(*shape: int, of: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=of, device="meta")

        qkv = empty(tokens, heads + 2 * kv_heads, head_size, of=dtype)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        sides = empty(2, 1024, 16, kv_heads, head_size, of=kv_dtype)
        scales = empty(2, 1024, 16, kv_heads, of=torch.float32) if kv_dtype in FORMATS else (None, None)
        kv = PagedKV(sides[0], sides[1], scales[0], scales[1])
        table = RotaryTable(empty(8192, rotary_size, of=torch.float32), interleaved)
        positions, slots = empty(tokens, of=torch.int32), empty(tokens, of=torch.int32)
        if only == "rotary":
            rotary(runtime, q, k, positions, table)
        elif only == "write_kv":
            write_kv(runtime, kv, k, v, slots)
        else:
            rotary_write_kv(runtime, q, k, v, positions, table, kv, slots)

    turned = f"rotary={rotary_size}{',interleaved' if interleaved else ''}"
    name = f"{dtype_name(dtype)},kv={dtype_name(kv_dtype)},head_size={head_size},{turned}"
    return Specimen(f"{only}:{name}" if only else name, call)


KERNEL = Kernel("rotary_write_kv", Ops.rotary_write_kv, (TUNABLE,), specimens)
