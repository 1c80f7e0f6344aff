"""What the catalog says of paged attention, and the calls it is compiled for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from octavo.backend import AttentionMetadata, array_ops
from octavo_torch.kernels.attention.operation import TUNABLE, paged_attention
from octavo_torch.kernels.kernel import Kernel, Specimen
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.kernels.scaled_kv import FORMATS


@dataclass(frozen=True, slots=True)
class _Call:
    """A call on meta tensors. queries: tokens of each sequence; context: of each sequence."""

    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype | None = None
    head_size: int = 128
    group: int = 4
    kv_heads: int = 8
    sequences: int = 1
    queries: int = 1
    context: int = 4096
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    @property
    def name(self) -> str:
        parts = [dtype_name(self.dtype)]
        if self.kv_dtype is not None:
            parts.append(f"kv={dtype_name(self.kv_dtype)}")
        parts.append(f"heads={self.group * self.kv_heads}x{self.kv_heads}x{self.head_size}")
        parts.append("decode" if self.queries == 1 else f"queries={self.queries}")
        parts.append(f"sequences={self.sequences}")
        if self.block_size != 16:
            parts.append(f"block={self.block_size}")
        parts += [f"window={self.window}"] if self.window is not None else []
        parts += [f"softcap={self.softcap:g}"] if self.softcap is not None else []
        parts += ["sinks"] if self.sinks else []
        return ",".join(parts)

    def __call__(self, runtime: KernelRuntime) -> None:
        heads, tokens = self.group * self.kv_heads, self.sequences * self.queries
        q = _meta((tokens, heads, self.head_size), self.dtype)
        sinks = _meta((heads,), self.dtype) if self.sinks else None
        paged_attention(
            runtime, q, self._cache(), self._metadata(tokens), self.head_size**-0.5, self.window, self.softcap, sinks
        )

    def _cache(self) -> PagedKV:
        dtype = self.kv_dtype or self.dtype
        # A block's slots of one head lie together, as the devices allocate them.
        shape = (1024, self.kv_heads, self.block_size, self.head_size)
        keys, values = (_meta(shape, dtype).transpose(1, 2) for _ in range(2))
        if dtype not in FORMATS:
            return PagedKV(keys, values)
        return PagedKV(keys, values, *(_meta(shape[:3], torch.float32).transpose(1, 2) for _ in range(2)))

    def _metadata(self, tokens: int) -> AttentionMetadata:
        return AttentionMetadata(
            positions=_meta((tokens,), torch.int32),
            slots=_meta((tokens,), torch.int32),
            sequences=_meta((tokens,), torch.int32),
            query_starts=_meta((self.sequences + 1,), torch.int32),
            context_lengths=_meta((self.sequences,), torch.int32),
            block_tables=_meta((self.sequences, self.context // self.block_size), torch.int32),
            decode_only=self.queries == 1,
        )


def specimens() -> Iterator[Specimen]:
    """Decodes that are split and ones that are not, mixed batches and prompts; each feature beside the usual one."""
    for call in _calls():
        yield Specimen(call.name, call)


def _calls() -> Iterator[_Call]:
    half, full = torch.float16, torch.float32
    for head_size in (64, 128, 256):
        yield _Call(head_size=head_size)
        yield _Call(head_size=head_size, sequences=8, queries=512)
        yield _Call(head_size=head_size, sequences=64, queries=4)
    yield _Call(sequences=2048)
    yield _Call(head_size=64, kv_heads=3, group=3)
    yield _Call(head_size=80, queries=256)
    yield _Call(full, head_size=256, queries=512)
    for queries in (1, 512):
        yield _Call(half, queries=queries)
        yield _Call(full, head_size=64, queries=queries)
        yield _Call(full, queries=queries)
        yield _Call(queries=queries, window=1024, softcap=30.0, sinks=True, sequences=4)
        for kv_dtype in FORMATS:
            yield _Call(kv_dtype=kv_dtype, queries=queries)
    yield _Call(half, kv_dtype=torch.float8_e4m3fn, group=1, block_size=32)


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


KERNEL = Kernel("paged_attention", array_ops.paged_attention, (TUNABLE,), specimens)
