"""The decoder: one pure function over `ops`, for every family, on every backend.

Nothing here knows an array library. Arrays are reshaped and sliced by the syntax that all of them share;
everything else is an operation of the backend or of the array-API standard.
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

from octavo.backend.collectives import Collectives
from octavo.backend.kv import KVCache, LayerKV
from octavo.backend.ops import Ops
from octavo.backend.step import AttentionMetadata, StepInputs
from octavo.backend.weights import Array, RotaryTable, Weight
from octavo.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's weights on this shard. The norms are arrays; qkv and gate_up are fused along their output axis.

    o_bias and down_bias are apart from their weights: they are added once, to the sum over the shards.
    """

    input_norm: Array  # [hidden]
    qkv: Weight  # [(heads + 2 * kv_heads) * head_size, hidden]
    o: Weight  # [hidden, heads * head_size]
    post_norm: Array  # [hidden]
    gate_up: Weight  # [2 * intermediate, hidden]
    down: Weight  # [hidden, intermediate]
    q_norm: Array | None = None  # [head_size]
    k_norm: Array | None = None  # [head_size]
    o_bias: Array | None = None  # [hidden]
    down_bias: Array | None = None  # [hidden]


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights on this shard. head is None where the output embedding is the input embedding."""

    embedding: Weight  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Array  # [hidden]
    head: Weight | None  # [vocab, hidden]
    rotary: RotaryTable


def hidden_states(
    config: DecoderConfig,
    ops: Ops,
    collectives: Collectives,
    weights: DecoderWeights,
    kv: KVCache,
    inputs: StepInputs,
) -> tuple[Array, KVCache]:
    """All layers: token ids to the normed hidden states of `inputs.logit_rows`, which `logits` takes.

    Returns (hidden states [rows, hidden], kv); callers rebind kv.
    """
    xp = array_namespace(inputs.token_ids)
    meta, rows = inputs.attention, inputs.logit_rows
    x = ops.embedding(inputs.token_ids, weights.embedding)  # [tokens, hidden]
    residual: Array | None = None
    caches: list[LayerKV] = []
    for layer, cache, window in zip(weights.layers, kv, config.windows, strict=True):
        x, residual = ops.rms_norm(x, layer.input_norm, config.norm_eps, residual)
        x, cache = _attention(config, ops, collectives, layer, weights.rotary, x, cache, meta, window)
        x, residual = ops.rms_norm(x, layer.post_norm, config.norm_eps, residual)
        x = ops.gated_activation(ops.linear(x, layer.gate_up), config.activation)
        x = _summed(collectives, ops.linear(x, layer.down), layer.down_bias)
        caches.append(cache)
    # Only the rows that are sampled go through the last norm and the vocabulary, the widest layer of all.
    x, residual = xp.take(x, rows, axis=0), xp.take(residual, rows, axis=0)
    x, _ = ops.rms_norm(x, weights.norm, config.norm_eps, residual)
    return x, caches


def logits(ops: Ops, collectives: Collectives, weights: DecoderWeights, hidden: Array) -> Array:
    """Hidden states [rows, hidden] to logits float32 [rows, vocab]."""
    if weights.head is None:
        result = ops.linear(hidden, weights.embedding)
    else:
        result = collectives.all_gather(ops.linear(hidden, weights.head), axis=1)
    xp = array_namespace(result)
    return xp.astype(result, xp.float32)


def _attention(
    config: DecoderConfig,
    ops: Ops,
    collectives: Collectives,
    layer: LayerWeights,
    table: RotaryTable,
    x: Array,
    cache: LayerKV,
    meta: AttentionMetadata,
    window: int | None,
) -> tuple[Array, LayerKV]:
    tokens, size = x.shape[0], config.head_size
    heads, kv_heads = config.heads // collectives.size, config.kv_heads // collectives.size
    qkv = ops.linear(x, layer.qkv)
    xp = array_namespace(qkv)
    qkv = xp.reshape(qkv, (tokens, heads + 2 * kv_heads, size))
    q, k, v = qkv[:, :heads, :], qkv[:, heads : heads + kv_heads, :], qkv[:, heads + kv_heads :, :]
    if layer.q_norm is not None:
        q, _ = ops.rms_norm(q, layer.q_norm, config.norm_eps)
        k, _ = ops.rms_norm(k, layer.k_norm, config.norm_eps)
    q, cache = ops.rotary_write_kv(q, k, v, meta.positions, table, cache, meta.slots)
    attended = ops.paged_attention(q, cache, meta, config.attention_scale, window)
    x = ops.linear(xp.reshape(attended, (tokens, heads * size)), layer.o)
    return _summed(collectives, x, layer.o_bias), cache


def _summed(collectives: Collectives, x: Array, bias: Array | None) -> Array:
    """The sum of the shards' partial results, and the bias."""
    x = collectives.all_reduce(x)
    return x if bias is None else x + bias
