"""The contract as an XLA vendor meets it: defaults that trace, trees instead of pytrees, a donated KV cache.

Runs where jax is installed (`pip install jax`); Octavo itself never needs it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from octavo.backend import (
    Activation,
    AttentionMetadata,
    Bucket,
    Capabilities,
    DenseWeight,
    Device,
    DeviceInfo,
    DType,
    ExpertWeights,
    KVLayout,
    LoRABank,
    MemoryInfo,
    Ops,
    QuantizedWeight,
    RotaryTable,
    StepInputs,
    array_ops,
)
from octavo.backend.tree import flatten, tree_map, unflatten

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax", reason="jax is not installed")

RNG = np.random.default_rng(0)


class JaxOps(Ops):
    """The three operations that write in place, without writing in place; all others are the defaults."""

    def write_kv(self, kv, k, v, slots):
        flat = kv.reshape(2, -1, *kv.shape[3:])
        return flat.at[:, slots].set(jax.numpy.stack([k, v]).astype(kv.dtype)).reshape(kv.shape)

    def copy_blocks(self, kv, source, target):
        return [layer.at[:, target].set(layer[:, source]) for layer in kv]

    def scatter_add(self, x, ids, values):
        return x.at[jax.numpy.arange(x.shape[0])[:, None], ids].add(values)


class JaxDevice(Device):
    ops = JaxOps()

    def __init__(self) -> None:
        self.info = DeviceInfo("jax", "XLA", "cpu", jax.__version__, "reference", Capabilities(static_shapes=True))
        self.traces = 0

    def upload(self, host):
        return jax.numpy.asarray(host)

    def download(self, array):
        return np.asarray(array)

    def load(self, tensor, dtype):
        return jax.numpy.asarray(tensor.read().astype(dtype.numpy))

    def allocate_kv(self, layout, blocks):
        shape = (2, blocks, layout.block_size, layout.kv_heads, layout.head_size)
        return [jax.numpy.full(shape, np.nan, layout.dtype.value) for _ in range(layout.layers)]

    def memory(self):
        return MemoryInfo(1 << 30, 1 << 30, shared_with_host=True)

    def compile(self, step, bucket):
        programs: dict[Any, Any] = {}

        def build(structures):
            results = []

            def program(*groups):
                self.traces += 1
                trees = (unflatten(structure, group) for structure, group in zip(structures, groups, strict=True))
                leaves, kinds = zip(*map(flatten, step(*trees)), strict=True)
                results.append(kinds)
                return leaves

            return jax.jit(program, donate_argnums=(1,)), results

        def run(*trees):
            groups, structures = zip(*map(flatten, trees), strict=True)
            if structures not in programs:
                programs[structures] = build(structures)
            program, results = programs[structures]
            leaves = program(*groups)
            return tuple(unflatten(kind, group) for kind, group in zip(results[0], leaves, strict=True))

        return run


def normal(*shape: int, dtype: DType = DType.FLOAT32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype.numpy)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


META = AttentionMetadata(
    positions=ids(5, 0, 1, 2, 0),
    slots=ids(9, 12, 13, 14, 0),
    sequences=ids(0, 1, 1, 1, 0),
    query_starts=ids(0, 1, 4, 4),
    context_lengths=ids(6, 3, 0),
    block_tables=np.array([[1, 2], [3, 0], [0, 0]], np.int32),
)
FOUR_BIT = QuantizedWeight(
    RNG.integers(0, 256, (6, 4), dtype=np.uint8),
    normal(6, 2),
    normal(6, 2),
    4,
    4,
    None,
    ids(*range(7, -1, -1)),
    normal(6),
)
CODES = QuantizedWeight(RNG.integers(0, 256, (6, 8), dtype=np.uint8), normal(6, 1), None, 8, 8, codebook=normal(256))
FLOAT8 = QuantizedWeight(normal(6, 8, dtype=DType.FLOAT8_E4M3), normal(6, 1), None, 8, 8)
POOL = normal(2, 5, 4, 2, 8)

CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "embedding": ("embedding", (ids(0, 5, 5), DenseWeight(normal(6, 8)))),
    "embedding of codes": ("embedding", (ids(0, 5, 5), FOUR_BIT)),
    "linear": ("linear", (normal(5, 8), DenseWeight(normal(6, 8), normal(6)))),
    "linear of 4 bits": ("linear", (normal(5, 8), FOUR_BIT)),
    "linear of a code book": ("linear", (normal(5, 8), CODES)),
    "linear of float8": ("linear", (normal(5, 8), FLOAT8)),
    "rms_norm": ("rms_norm", (normal(5, 8), normal(8), 1e-5, normal(5, 8))),
    "rotary": ("rotary", (normal(3, 4, 8), normal(3, 2, 8), ids(3, 0, 9), RotaryTable(normal(10, 4)))),
    "rotary in pairs": ("rotary", (normal(3, 4, 8), normal(3, 2, 8), ids(3, 0, 9), RotaryTable(normal(10, 8), True))),
    "write_kv": ("write_kv", (POOL.copy(), normal(5, 2, 8), normal(5, 2, 8), ids(4, 9, 17, 3, 1))),
    "paged_attention": ("paged_attention", (normal(5, 4, 8), POOL, META, 0.3)),
    "paged_attention with all": ("paged_attention", (normal(5, 4, 8), POOL, META, 0.3, 2, 5.0, normal(4))),
    "silu": ("gated_activation", (normal(5, 8), Activation.SILU)),
    "gelu": ("gated_activation", (normal(5, 8), Activation.GELU)),
    "gelu_tanh": ("gated_activation", (normal(5, 8), Activation.GELU_TANH)),
    "relu": ("gated_activation", (normal(5, 8), Activation.RELU)),
    "mixture_of_experts": (
        "mixture_of_experts",
        (normal(5, 8), normal(5, 3), ExpertWeights(DenseWeight(normal(3, 12, 8)), DenseWeight(normal(3, 8, 6))), 2),
    ),
    "lora": ("lora", (normal(4, 8), normal(4, 6), LoRABank(normal(2, 3, 8), normal(2, 6, 3)), ids(-1, 1, 0, 1))),
    "probability_units": ("probability_units", (normal(3, 130), normal(3) ** 2 + 1)),
    "top_k": ("top_k", (np.array([[1, 3, 3, 0], [0, 0, 0, 0]], np.float32), 3)),
    "scatter_add": ("scatter_add", (normal(2, 5), np.array([[1, 1, 0], [4, 2, 4]], np.int32), normal(2, 3))),
    "copy_blocks": ("copy_blocks", ([normal(2, 5, 4, 2, 8)], ids(1, 2, 0), ids(2, 3, 0))),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operation_traces_and_equals_numpy(case, monkeypatch):
    monkeypatch.setattr(array_ops, "KEYS_PER_PASS", 4)  # more than one pass, in tokens and in keys
    monkeypatch.setattr(array_ops, "TOKENS_PER_PASS", 3)
    name, arguments = CASES[case]
    leaves, structure = flatten(arguments)
    traced = jax.jit(lambda arrays: getattr(JaxOps(), name)(*unflatten(structure, arrays)))(leaves)
    expected = getattr(Ops(), name)(*unflatten(structure, [leaf.copy() for leaf in leaves]))
    for mine, theirs in zip(flatten(traced)[0], flatten(expected)[0], strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(np.asarray(mine), theirs, rtol=2e-5, atol=2e-5)


@dataclass(frozen=True)
class Outputs:
    best: Any
    attended: Any


def test_a_compiled_step_is_traced_once_donates_its_cache_and_equals_numpy():
    """A prefill and then a decode beside a prefill, through flattened trees and one program."""
    table, qkv = DenseWeight(normal(11, 8)), DenseWeight(normal(8 * 8, 8))
    rotary = RotaryTable(normal(16, 8))

    def make_step(ops):
        def step(weights, kv, inputs):
            meta = inputs.attention
            x = ops.linear(ops.embedding(inputs.token_ids, weights["table"]), weights["qkv"]).reshape((5, 8, 8))
            q, layer = ops.rotary_write_kv(
                x[:, :4], x[:, 4:6], x[:, 6:], meta.positions, weights["rotary"], kv[0], meta.slots
            )
            y = ops.paged_attention(q, layer, meta, 0.3, window=4)
            return Outputs(ops.top_k(y.reshape((5, 32)), 2)[1], y), [layer]

        return step

    prefill = AttentionMetadata(
        ids(0, 1, 2, 3, 4), ids(4, 5, 6, 7, 8), ids(0, 0, 0, 0, 0), ids(0, 5, 5, 5), ids(5, 0, 0), META.block_tables
    )
    script = [StepInputs(ids(1, 2, 3, 4, 5), ids(4), prefill), StepInputs(ids(6, 7, 8, 9, 0), ids(0), META)]
    device, weights = JaxDevice(), {"table": table, "qkv": qkv, "rotary": rotary}
    kv = device.allocate_kv(KVLayout(1, 2, 8, 4, DType.FLOAT32), 5)
    plain_kv = [np.full((2, 5, 4, 2, 8), np.nan, np.float32)]
    step = device.compile(make_step(device.ops), Bucket(5, 3, 2, 1, decode_only=False))
    for inputs in script:
        before = kv[0]
        outputs, kv = step(tree_map(device.upload, weights), kv, device.stage(inputs))
        plain, plain_kv = make_step(Ops())(weights, plain_kv, inputs)
        assert before.is_deleted()
        real = int(inputs.attention.query_starts[-1])
        np.testing.assert_allclose(outputs.attended[:real], plain.attended[:real], atol=2e-5)
        np.testing.assert_array_equal(outputs.best[:real], plain.best[:real])
    assert device.traces == 1
