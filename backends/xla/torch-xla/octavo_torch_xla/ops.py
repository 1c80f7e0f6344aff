"""The shared torch operations without their two round trips to the host."""

from __future__ import annotations

from octavo.backend import Array, AttentionMetadata, LayerKV, Ops
from octavo_torch import TorchOps


class StaticOps(TorchOps):
    """No shape of these depends on a value, so that a bucket stays one program.

    `TorchOps.paged_attention` reads lengths on the host and cuts tensors by them: each new length is another program.
    `TorchOps.top_k` looks for rows with equal entries on the host, and counts them with a cumsum of booleans, which
    torch-xla 2.9 returns as booleans. The contract's own operations do neither.
    """

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
