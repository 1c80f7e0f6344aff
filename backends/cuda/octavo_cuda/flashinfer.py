"""FlashInfer's paged attention (Ye et al. 2025) as a kernel of this backend, `kernel = "flashinfer"`.

Each step is planned once on the host, from the arrays that the runner packed, and runs in every layer. What FlashInfer
is not planned for (a sliding window, a softcap, sinks, a cache of another dtype) runs on Octavo's own kernels.

Written from the documentation and the source of flashinfer-python 0.6; not yet run on hardware. Its planning is tested
against a stand-in.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from octavo.backend import (
    Array,
    AttentionMetadata,
    DType,
    KVCache,
    KVLayout,
    LayerKV,
    StepInputs,
)
from octavo_torch.arrays import torch_dtype
from octavo_torch.gpu.triton_kernels import TritonKernels
from octavo_torch.kernels.kv import PagedKV
from octavo_torch.kernels.launch import KernelRuntime, dtype_name
from octavo_torch.triton_ops import TritonOps

WORKSPACE = 256 << 20
"""Bytes on the card for partial results of split contexts; all wrappers share them, since steps run in order."""

IN_FLIGHT = 2
"""Plans that exist at a time: one that runs and one that is made. A plan's own buffers are pinned, and read late."""

_DTYPES = (DType.BFLOAT16, DType.FLOAT16)

TENSOR_CORE_GROUP = 4
"""Query heads to a KV head from which decoding pays on tensor cores."""


@dataclass(frozen=True, slots=True)
class Pages:
    """A step's block tables as FlashInfer reads them: compressed rows, on the host, all int32.

    query_starts, page_starts [sequences + 1]. pages [sum of their pages]. last_page_lengths [sequences]: slots used in
    each sequence's last page, 1 to the page size.
    """

    query_starts: np.ndarray[Any, np.dtype[np.int32]]
    page_starts: np.ndarray[Any, np.dtype[np.int32]]
    pages: np.ndarray[Any, np.dtype[np.int32]]
    last_page_lengths: np.ndarray[Any, np.dtype[np.int32]]

    @classmethod
    def of(cls, meta: AttentionMetadata, block_size: int) -> Pages:
        """From NumPy arrays."""
        lengths = np.maximum(meta.context_lengths, 1)  # a padding sequence owns the null block
        counts = -(-lengths // block_size)
        starts = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        used = np.arange(meta.block_tables.shape[1])[None, :] < counts[:, None]
        last = (lengths - 1) % block_size + 1
        return cls(meta.query_starts, starts, meta.block_tables[used], last.astype(np.int32))


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned step. wrapper: number of FlashInfer's object that holds it; the others: what it was planned for."""

    decode_only: bool
    wrapper: int
    heads: int
    kv_heads: int
    head_size: int
    dtype: str

    def fits(self, q: torch.Tensor, kv: PagedKV) -> bool:
        return (
            tuple(q.shape[1:]) == (self.heads, self.head_size)
            and kv.keys.shape[2] == self.kv_heads
            and dtype_name(q.dtype) == dtype_name(kv.keys.dtype) == self.dtype
        )


class Planner:
    """FlashInfer's wrappers for one KV layout, and the plans they hold. library: the module `flashinfer`."""

    def __init__(self, library: Any, layout: KVLayout, device: torch.device) -> None:
        self._library, self._layout, self._device = library, layout, device
        self._workspace = torch.zeros(WORKSPACE, dtype=torch.uint8, device=device)
        self._wrappers = {kind: [self._make_wrapper(kind) for _ in range(IN_FLIGHT)] for kind in (True, False)}
        self._turn = 0

    def plan(self, meta: AttentionMetadata) -> Plan:
        """Plan a step whose metadata is NumPy arrays. The plan of the step before stays as it is."""
        layout, dtype = self._layout, torch_dtype(self._layout.dtype)
        self._turn = (self._turn + 1) % IN_FLIGHT
        pages = Pages.of(meta, layout.block_size)
        table = [self._pinned(array) for array in (pages.page_starts, pages.pages, pages.last_page_lengths)]
        heads = (layout.query_heads, layout.kv_heads, layout.head_size)
        common = {"sm_scale": 1.0, "q_data_type": dtype, "kv_data_type": dtype, "non_blocking": True}
        plan = Plan(meta.decode_only, self._turn, *heads, layout.dtype.value)
        if meta.decode_only:
            self.wrapper(plan).plan(*table, *heads, layout.block_size, **common)
        else:
            starts = self._pinned(pages.query_starts)
            self.wrapper(plan).plan(starts, *table, *heads, layout.block_size, causal=True, **common)
        return plan

    def wrapper(self, plan: Plan) -> Any:
        """The object that runs a plan."""
        return self._wrappers[plan.decode_only][plan.wrapper]

    def _make_wrapper(self, decode_only: bool) -> Any:
        if not decode_only:
            return self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
        wide = self._layout.query_heads // self._layout.kv_heads >= TENSOR_CORE_GROUP
        return self._library.BatchDecodeWithPagedKVCacheWrapper(self._workspace, "NHD", use_tensor_cores=wide)

    def _pinned(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """On the host, in memory from which the copy to the card is queued and not waited for."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


class FlashInferOps(TritonOps):
    """Attention by FlashInfer where the step was planned for it; all else as `TritonOps`."""

    planner: Planner | None = None

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
        plan = meta.plan
        plain = window is None and softcap is None and sinks is None
        if plain and self.planner is not None and isinstance(plan, Plan) and plan.fits(q, kv):
            # Planned with a scale of 1: layers may differ in theirs, and a query's own scale multiplies it.
            return self.planner.wrapper(plan).run(q.contiguous(), (kv.keys, kv.values), q_scale=scale)
        return super().paged_attention(q, kv, meta, scale, window, softcap, sinks)


class FlashInferKernels(TritonKernels):
    """Octavo's kernels with FlashInfer's attention. Steps run eagerly: a recorded one could not be planned anew."""

    name = "flashinfer"

    def __init__(self, runtime: KernelRuntime, library: Any = None) -> None:
        """library: the module `flashinfer`, or a stand-in."""
        super().__init__(runtime)
        self._ops = FlashInferOps(runtime)
        self.ops = self._ops
        self.capabilities = replace(
            self.capabilities,
            dtypes=_DTYPES,
            kv_dtypes=_DTYPES,
            block_sizes=(16, 32, 64),
            head_sizes=(64, 128, 256),
            graph_capture=False,
        )
        self._library = importlib.import_module("flashinfer") if library is None else library

    def allocate_kv(self, layout: KVLayout, blocks: int, device: torch.device) -> KVCache:
        # Without the number of query heads nothing can be planned, and Octavo's kernels run.
        self._ops.planner = Planner(self._library, layout, device) if layout.query_heads else None
        return super().allocate_kv(layout, blocks, device)

    def plan(self, inputs: StepInputs) -> StepInputs:
        planner, meta = self._ops.planner, inputs.attention
        if planner is None or not isinstance(meta.block_tables, np.ndarray):
            return inputs
        return replace(inputs, attention=replace(meta, plan=planner.plan(meta)))
