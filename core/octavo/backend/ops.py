"""The operations a model is made of.

Every method is optional: the defaults, in `octavo.backend.array_ops`, are complete on any array library that follows
the Python array-API standard, so a new backend works with `Ops()` alone and overrides one operation at a time. A fused
operation's default calls the plain ones through `self`, so overriding a plain one is enough.

Rules that hold for each operation:
- Arguments are not modified, except the KV cache, which callers rebind: `kv = ops.write_kv(kv, ...)`.
- Results have the dtype of their first array of floats; sums are accumulated in float32 or better.
- Integer arrays are int32. No shape depends on the contents of an array.
- Padding rows (see `AttentionMetadata`) may hold anything, NaN included; no other row may see them.
"""

from __future__ import annotations

from octavo.backend import array_ops
from octavo.backend.kv import KVCache, LayerKV
from octavo.backend.step import AttentionMetadata
from octavo.backend.weights import Activation, Array, ExpertWeights, LoRABank, RotaryTable, Weight


class Ops:
    """The operations of one device. All methods are optional to override."""

    def embedding(self, ids: Array, weight: Weight) -> Array:
        """Rows of an embedding table.

        ids int32 [tokens], weight [vocab, hidden] -> [tokens, hidden], in the table's dtype (a quantized table's is
        that of its scales).
        """
        return array_ops.embedding(ids, weight)

    def linear(self, x: Array, weight: Weight) -> Array:
        """x @ W.T + bias. x [tokens, in], weight [out, in], dense or quantized -> [tokens, out]."""
        return array_ops.linear(x, weight)

    def rms_norm(self, x: Array, weight: Array, eps: float, residual: Array | None = None) -> tuple[Array, Array]:
        """Root-mean-square norm over the last axis (Zhang and Sennrich 2019), fused with the residual addition.

        x [..., hidden], weight [hidden], residual like x or None. Returns (normed, sum): sum = x + residual (x itself
        where residual is None), normed = sum / sqrt(mean(sum^2) + eps) * weight, the mean in float32.
        """
        return array_ops.rms_norm(x, weight, eps, residual)

    def rotary(self, q: Array, k: Array, positions: Array, table: RotaryTable) -> tuple[Array, Array]:
        """Rotary position embedding (Su et al. 2021).

        q [tokens, heads, head_size], k [tokens, kv_heads, head_size], positions int32 [tokens] -> rotated q and k.
        """
        return array_ops.rotary(q, positions, table), array_ops.rotary(k, positions, table)

    def write_kv(self, kv: LayerKV, k: Array, v: Array, slots: Array) -> LayerKV:
        """Store keys and values of a step.

        k, v [tokens, kv_heads, head_size], slots int32 [tokens]; converted to the cache's dtype. Several padding tokens
        may write to slot 0. The default writes in place; an array library without in-place writes (JAX) overrides it.
        """
        return array_ops.write_kv(kv, k, v, slots)

    def rotary_write_kv(
        self, q: Array, k: Array, v: Array, positions: Array, table: RotaryTable, kv: LayerKV, slots: Array
    ) -> tuple[Array, LayerKV]:
        """`rotary` and `write_kv` in one pass: returns (rotated q, kv)."""
        q, k = self.rotary(q, k, positions, table)
        return q, self.write_kv(kv, k, v, slots)

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
        """Causal attention of each token over its sequence's cache (Kwon et al. 2023, PagedAttention).

        q [tokens, heads, head_size] -> the same shape. Query head h reads KV head h // (heads / kv_heads). The step's
        own keys and values are in the cache already. A token at position p attends to positions max(0, p - window + 1)
        .. p. Scores are q.k * scale, then softcap * tanh(score / softcap) where given; sinks [heads] adds one more
        score per head to the softmax's denominator, with no value. Slots of no attended token are never read into a
        result, whatever they hold.
        """
        return array_ops.paged_attention(q, kv, meta, scale, window, softcap, sinks)

    def gated_activation(self, x: Array, kind: Activation) -> Array:
        """activation(gate) * up. x [tokens, 2 * intermediate], the gate first -> [tokens, intermediate]."""
        return array_ops.gated_activation(x, kind)

    def mixture_of_experts(self, x: Array, router_logits: Array, experts: ExpertWeights, top_k: int) -> Array:
        """Each token through its top_k experts (Shazeer et al. 2017; Mixtral).

        x [tokens, hidden], router_logits [tokens, experts]. Softmax over all experts in float32, the top_k kept,
        divided by their sum where `experts.renormalize`; the experts' outputs summed with these weights -> [tokens,
        hidden]. Equal logits: the lower expert index wins.
        """
        return array_ops.mixture_of_experts(self, x, router_logits, experts, top_k)

    def lora(self, x: Array, y: Array, bank: LoRABank, adapter_ids: Array) -> Array:
        """y + B[a] @ (A[a] @ x) for each row's own adapter a; rows with adapter -1 are y unchanged.

        x [tokens, in], y [tokens, out], adapter_ids int32 [tokens] -> [tokens, out].
        """
        return array_ops.lora(x, y, bank, adapter_ids)

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        """The k largest entries of each row in descending order; among equal ones the lowest index first.

        x [rows, n], 1 <= k <= n -> values [rows, k], indices int32 [rows, k].
        """
        return array_ops.top_k(x, k)

    def probability_units(self, x: Array, temperatures: Array) -> Array:
        """softmax(x / temperature) of each row in units of 2^-30, to the nearest integer.

        x float32 [rows, n], each row's largest entry finite; temperatures float32 [rows], above 0 -> int32 [rows, n].
        An entry of -inf has 0 units. Results are within 0.6 units plus 2e-6 of the exact probability, float32 holds
        each of them, and a row's are the same bits in any batch: the order of its sum depends on n alone.
        """
        return array_ops.probability_units(x, temperatures)

    def scatter_add(self, x: Array, ids: Array, values: Array) -> Array:
        """x with values added at ids, row by row; repeated ids add up.

        x float32 [rows, n], ids int32 [rows, e], values float32 [rows, e] -> [rows, n]. Padding entries carry value 0.
        """
        return array_ops.scatter_add(x, ids, values)

    def copy_blocks(self, kv: KVCache, source: Array, target: Array) -> KVCache:
        """Copy whole blocks in every layer: block source[i] to target[i], all read before any is written.

        source, target int32 [n]; padding entries copy the null block onto itself.
        """
        return array_ops.copy_blocks(kv, source, target)
