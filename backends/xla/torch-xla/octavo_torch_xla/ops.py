"""The shared torch operations without round trips to the host, and with a cache that is written in place."""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.backend import Array, AttentionMetadata, KVCache, LayerKV, Ops
from octavo_torch import TorchOps


class StaticOps(TorchOps):
    """No shape of these depends on a value, so that a bucket stays one program.

    `TorchOps.paged_attention` reads lengths on the host and cuts tensors by them: each new length is another program.
    `TorchOps.top_k` looks for rows with equal entries on the host, and counts them with a cumsum of booleans, which
    torch-xla 2.9 returns as booleans. The contract's own operations do neither.

    The cache is written by one scatter into the tensor itself, in place. Through a view, XLA slices a side out and puts
    it back: 8 tokens into 201 MB took 600 ms on a host, and take 0.7 ms so.

    flush: runs what is pending. What happens between steps would be one program with the next of them otherwise, and
    each size of the one with each of the other another program.
    """

    def __init__(self, flush: Callable[[], object]) -> None:
        self._flush = flush

    def write_kv(self, kv: LayerKV, k: Array, v: Array, slots: Array) -> LayerKV:
        slots, block_size = slots.long()[None], kv.shape[2]
        kv.index_put_((_sides(kv), slots // block_size, slots % block_size), torch.stack([k, v]).to(kv.dtype))
        return kv

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        for layer in kv:
            layer.index_put_((_sides(layer), target.long()[None]), layer.index_select(1, source))
        self._flush()
        return kv

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
        return Ops.paged_attention(self, q, kv, meta, scale, window, softcap, sinks)

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        # XLA sorts -0.0 below 0.0, which are equal.
        _, ids = Ops.top_k(self, x.masked_fill(x == 0, 0.0), k)
        return x.gather(-1, ids.long()), ids


def _sides(kv: LayerKV) -> torch.Tensor:
    """Indices of keys and values, against any of tokens: int64 [2, 1]."""
    return torch.arange(2, device=kv.device)[:, None]
