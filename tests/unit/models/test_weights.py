"""Loading: what is checked before anything is loaded, and tensor parallelism as data."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from transformers import LlamaConfig

from octavo.backend import Collectives, DeviceConfig, DType, KVLayout, StepInputs
from octavo.backend.tree import flatten
from octavo.errors import ModelError
from octavo.models.checkpoint import open_checkpoint
from octavo.models.config import DecoderConfig
from octavo.models.decoder import hidden_states, logits
from octavo.models.resolve import resolve_model
from octavo.models.weights import load_weights, parameter_count
from octavo.reference.device import ReferenceDevice

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=32,
    attention_bias=True,
    mlp_bias=True,
)


@pytest.fixture
def checkpoint(make_hf_model, tmp_path):
    make_hf_model(CONFIG).save_pretrained(tmp_path)
    return open_checkpoint(resolve_model(str(tmp_path)))


def load(checkpoint, device=None, **changes):
    config = DecoderConfig.from_hf({**checkpoint.config, **changes})
    return load_weights(config, checkpoint, device or ReferenceDevice(DeviceConfig()), DType.FLOAT32)


def test_a_missing_tensor_is_named(checkpoint):
    with pytest.raises(ModelError, match=r"lacks the tensor model\.layers\.2\.input_layernorm\.weight and 15 more"):
        load(checkpoint, num_hidden_layers=3)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(checkpoint):
    with pytest.raises(ModelError, match=r"embed_tokens\.weight has the shape \[40, 32\] .* \[41, 32\]"):
        load(checkpoint, vocab_size=41)


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({"mlp_bias": False}, r"the tensor model\.layers\.0\.mlp\.\w+_proj\.bias and 5 more"),
        ({"attention_bias": False}, r"the tensor model\.layers\.0\.self_attn\.\w_proj\.bias and 7 more"),
        ({"num_hidden_layers": 1}, r"the tensor model\.layers\.1\.\S+ and 15 more"),
    ],
)
def test_tensors_that_the_config_does_not_call_for_are_named_not_dropped(checkpoint, changes, tensors):
    with pytest.raises(ModelError, match=f"{tensors}, which its config does not call for"):
        load(checkpoint, **changes)


@pytest.mark.parametrize(
    "name", ["lm_head.bias", "model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.up_proj.weight_scale"]
)
def test_a_single_tensor_too_many_is_named(checkpoint, name):
    tensors = {**checkpoint.tensors, name: checkpoint.tensors["model.norm.weight"]}
    with pytest.raises(ModelError, match=rf"the tensor {re.escape(name)}, which its config does not call for"):
        load(replace(checkpoint, tensors=tensors))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_buffers_that_are_computed_may_be_there(checkpoint, name):
    tensors = {**checkpoint.tensors, name: checkpoint.tensors["model.norm.weight"]}
    assert len(load(replace(checkpoint, tensors=tensors)).layers) == 2


def test_nothing_is_loaded_when_something_is_missing(checkpoint):
    class Untouched(ReferenceDevice):
        def load(self, tensor, dtype):
            pytest.fail("loaded before the check")

    with pytest.raises(ModelError):
        load(checkpoint, Untouched(DeviceConfig()), num_hidden_layers=3)


def test_tied_embeddings_are_loaded_once(checkpoint):
    weights = load(checkpoint, tie_word_embeddings=True)
    assert weights.head is None
    assert load(checkpoint).head is not None


def test_projections_are_fused_at_load(checkpoint):
    layer = load(checkpoint).layers[0]
    names = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    expected = np.concatenate([checkpoint.tensors[name].read() for name in names])
    np.testing.assert_array_equal(layer.qkv.array, expected)
    assert layer.gate_up.array.shape == (96, 32)


def test_progress_goes_from_nothing_to_all(checkpoint):
    seen = []
    config = DecoderConfig.from_hf(checkpoint.config)
    device = ReferenceDevice(DeviceConfig())
    load_weights(config, checkpoint, device, DType.FLOAT32, progress=lambda text, part: seen.append(part))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


class ThreadCollectives(Collectives):
    """Shards as threads of this process."""

    def __init__(self, rank: int, size: int, board: list, barrier: threading.Barrier) -> None:
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def all_reduce(self, x):
        return np.sum(self._exchange(x), axis=0)

    def all_gather(self, x, axis):
        return np.concatenate(self._exchange(x), axis=axis)

    def _exchange(self, x):
        self.board[self.rank] = x
        self.barrier.wait()
        shares = list(self.board)
        self.barrier.wait()
        return shares


class ShardDevice(ReferenceDevice):
    def __init__(self, collectives: Collectives) -> None:
        super().__init__(DeviceConfig())
        self.collectives = collectives

    def load(self, tensor, dtype):
        return super().load(tensor.shard(self.collectives.rank, self.collectives.size), dtype)


@pytest.mark.parametrize("size", [2, 4])
def test_shards_together_give_the_logits_of_one_device(checkpoint, open_model, size):
    tokens = list(range(20))
    model = open_model(checkpoint.path)
    expected = model.step([("a", tokens)])[0]
    inputs: list[StepInputs] = []
    model.device.stage = lambda step: inputs.append(step) or step
    model.step([("b", tokens)])

    board, barrier = [None] * size, threading.Barrier(size, timeout=30)

    def shard(rank: int):
        device = ShardDevice(ThreadCollectives(rank, size, board, barrier))
        config = model.config
        weights = load_weights(config, checkpoint, device, DType.FLOAT32)
        layout = KVLayout(config.layers, config.kv_heads // size, config.head_size, 4, DType.FLOAT32, config.windows)
        ops, collectives, kv = device.ops, device.collectives, device.allocate_kv(layout, 64)
        hidden, _ = hidden_states(config, ops, collectives, weights, kv, inputs[0])
        return logits(ops, collectives, weights, hidden)

    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(shard, range(size)))
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_heads_that_do_not_divide_among_the_shards_name_the_numbers_that_would(checkpoint):
    device = ShardDevice(ThreadCollectives(0, 3, [None] * 3, threading.Barrier(3)))
    with pytest.raises(
        ModelError, match=r"not divide among 3 shards: it has 4 key/value heads.* of 1 or 2 or 4 would do"
    ):
        load(checkpoint, device)


def test_fields_without_a_tensor_are_none(checkpoint):
    layer = load(checkpoint).layers[0]
    assert layer.q_norm is None
    assert layer.k_norm is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_the_parameter_count_of_a_shard_is_that_of_what_it_loads(make_hf_model, tmp_path, tied, size):
    config = LlamaConfig(**{**CONFIG.to_dict(), "tie_word_embeddings": tied})
    make_hf_model(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(resolve_model(str(tmp_path)))
    device = ShardDevice(ThreadCollectives(0, size, [None] * size, threading.Barrier(size)))
    leaves, _ = flatten(replace(load(checkpoint, device), rotary=None))
    assert parameter_count(DecoderConfig.from_hf(checkpoint.config), size) == sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize("tied", [True, False])
def test_the_parameter_count_is_that_of_transformers(make_hf_model, tied):
    hf_config = LlamaConfig(**CONFIG.to_diff_dict() | {"tie_word_embeddings": tied})
    model = make_hf_model(hf_config)
    config = DecoderConfig.from_hf(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]})
    assert parameter_count(config) == model.num_parameters()
