"""AITER's paged attention (AMD's AI Tensor Engine for ROCm) as a kernel of this backend, `kernel = "aiter"`.

It decodes; steps with prompts in them, and what it does not take (a sliding window, sinks, float32), run on
Octavo's own kernels.

Written from the source of AITER 0.1; not yet run on hardware. What runs where is tested against a stand-in.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from octavo.backend import Array, AttentionMetadata, DType, LayerKV
from octavo_torch.gpu.triton_kernels import TritonKernels
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.triton_ops import TritonOps

PARTITION = 256
"""Tokens of a context that one program reads; the partial results of all of them are merged by a second kernel."""

MOST_QUERIES = 16
"""Largest number of query heads to a KV head."""

_DTYPES = (torch.bfloat16, torch.float16)
_HEAD_SIZES = (64, 128)


def missing_aiter() -> str:
    """A sentence where AITER is not installed, or "". The public index has another package of that name."""
    found = importlib.util.find_spec("aiter")
    places = found.submodule_search_locations if found is not None else None
    if any((Path(place) / "ops" / "attention.py").is_file() for place in places or ()):
        return ""
    return "AITER is not installed: pip install amd-aiter"


class AiterOps(TritonOps):
    """Decoding by AITER; all else as `TritonOps`."""

    def __init__(self, runtime: KernelRuntime, library: Any) -> None:
        """library: the module `aiter`, or a stand-in."""
        super().__init__(runtime)
        self._library = library
        self._ones: torch.Tensor | None = None  # the scales of a cache that has none

    def paged_attention(
        self,
        q: Array,
        kv: LayerKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        if window is not None or sinks is not None or not _takes(q, kv, meta):
            return super().paged_attention(q, kv, meta, scale, window, softcap, sinks)
        if self._ones is None:
            self._ones = torch.ones(1, device=q.device)
        q, out = q.contiguous(), torch.empty(q.shape, dtype=q.dtype, device=q.device)
        longest = meta.block_tables.shape[1] * kv.block_size
        self._library.paged_attention_v1(
            out,
            _workspace(q, longest),
            q,
            kv.keys,
            kv.values,
            scale,
            meta.block_tables,
            None,  # starts of the queries: one for each sequence
            meta.context_lengths,
            longest,
            None,  # slopes of ALiBi
            "auto",  # the cache has the dtype of the queries
            "NHD",  # blocks of [tokens, heads, head size]
            softcap or 0.0,
            self._ones,
            self._ones,
            None,  # the scale of a float8 result
            PARTITION,
        )
        return out


class AiterKernels(TritonKernels):
    """Octavo's kernels with AITER's decoding."""

    name = "aiter"

    def __init__(self, runtime: KernelRuntime, library: Any = None) -> None:
        """library: the module `aiter`, or a stand-in."""
        super().__init__(runtime)
        self.ops = AiterOps(runtime, importlib.import_module("aiter") if library is None else library)
        # Whether its launches can be recorded was not tried.
        dtypes = (DType.BFLOAT16, DType.FLOAT16)
        self.capabilities = replace(
            self.capabilities, dtypes=dtypes, kv_dtypes=dtypes, block_sizes=(16,), graph_capture=False
        )


def _takes(q: torch.Tensor, kv: PagedKV, meta: AttentionMetadata) -> bool:
    return (
        meta.decode_only
        and q.shape[0] == meta.context_lengths.shape[0]
        and q.dtype in _DTYPES
        and q.dtype == kv.keys.dtype
        and q.shape[2] in _HEAD_SIZES
        and q.shape[1] // kv.keys.shape[2] <= MOST_QUERIES
    )


def _workspace(q: torch.Tensor, longest: int) -> torch.Tensor:
    """uint8: of each partition a result in float32, its largest score and the sum of its weights."""
    sequences, heads, head_size = q.shape
    partitions = -(-longest // PARTITION)
    return torch.empty(sequences * heads * partitions * (head_size + 2) * 4, dtype=torch.uint8, device=q.device)
