"""The contract's operations where torch has something better than the array-API default.

Everything here is correct for every shape and needs no kernel of its own: a backend overrides what it can do faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from octavo.backend import (
    Activation,
    Array,
    AttentionMetadata,
    DenseWeight,
    KVCache,
    LayerKV,
    Ops,
    Weight,
)

_ACTIVATIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: functional.silu,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.RELU: functional.relu,
}


class TorchOps(Ops):
    """The operations on torch tensors of any device."""

    def embedding(self, ids: Array, weight: Weight) -> Array:
        if isinstance(weight, DenseWeight):
            return weight.array.index_select(0, ids)
        return super().embedding(ids, weight)

    def linear(self, x: Array, weight: Weight) -> Array:
        if isinstance(weight, DenseWeight):
            return functional.linear(x, weight.array, weight.bias)
        return super().linear(x, weight)

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        total = x if residual is None else x + residual
        wide = total.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale * weight.float()).to(x.dtype), total

    def write_kv(self, kv: LayerKV, k: Array, v: Array, slots: Array) -> LayerKV:
        flat = kv.view(2, -1, *kv.shape[3:])  # [2, slots, kv_heads, head_size]
        index = slots.long()
        flat[0].index_copy_(0, index, k.to(kv.dtype))
        flat[1].index_copy_(0, index, v.to(kv.dtype))
        return kv

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        index = target.long()
        for layer in kv:
            layer.index_copy_(1, index, layer.index_select(1, source))
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
        """Sequence by sequence on gathered keys: the fallback where no kernel walks the block table."""
        _, heads, size = q.shape
        block_size, kv_heads = kv.shape[2], kv.shape[3]
        starts, lengths = meta.query_starts.tolist(), meta.context_lengths.tolist()
        out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        for sequence, context in enumerate(lengths):
            start, stop = starts[sequence], starts[sequence + 1]
            queries = stop - start
            if queries == 0 or context == 0:
                continue
            first = 0 if window is None else max(0, context - queries - window + 1)
            first_block = first // block_size
            # Only blocks and slots that some query may see: the others may hold anything.
            blocks = meta.block_tables[sequence, first_block : -(-context // block_size)]
            rows = kv.index_select(1, blocks).flatten(1, 2)  # [2, slots, kv_heads, head_size]
            begin = first - first_block * block_size
            keys, values = rows[:, begin : begin + context - first].float().permute(0, 2, 1, 3)

            mine = q[start:stop].float().view(queries, kv_heads, heads // kv_heads, size).permute(1, 2, 0, 3)
            scores = (mine @ keys[:, None].transpose(-1, -2)) * scale  # [kv_heads, group, queries, keys]
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            at = torch.arange(context - queries, context, device=q.device)[:, None]
            key = torch.arange(first, context, device=q.device)[None, :]
            hidden = key > at
            if window is not None:
                hidden |= key <= at - window
            scores = scores.masked_fill(hidden, -torch.inf)
            if sinks is not None:
                extra = sinks.float().view(kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
                weights = torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1]
            else:
                weights = torch.softmax(scores, -1)
            out[start:stop] = (weights @ values[:, None]).permute(2, 0, 1, 3).reshape(queries, heads, size).to(q.dtype)
        return out

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        gate, up = x.float().chunk(2, -1)
        return (_ACTIVATIONS[kind](gate) * up).to(x.dtype)

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, ids = torch.topk(x, k)
        # torch.topk promises no order among equals. Where more entries equal the smallest kept than were kept, it may
        # have kept the wrong ones too.
        smallest = values[:, -1:]
        crowded = ((x == smallest).sum(-1) > (values == smallest).sum(-1)).nonzero().flatten()
        if crowded.numel():
            ids[crowded] = _lowest_of_equals(x[crowded], smallest[crowded], k)
        ids = ids.sort(-1).values
        values, order = x.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
        return values, ids.gather(-1, order).int()

    def scatter_add(self, x: Array, ids: Array, values: Array) -> Array:
        return x.scatter_add(1, ids.long(), values)


def _lowest_of_equals(x: Array, smallest: Array, k: int) -> Array:
    """The entries above `smallest` [rows, 1] and the first ones equal to it, k a row: int64 [rows, k], rising."""
    above, equal = x > smallest, x == smallest
    room = k - above.sum(-1, keepdim=True)
    kept = above | (equal & (equal.cumsum(-1) <= room))
    return kept.nonzero()[:, 1].view(-1, k)
