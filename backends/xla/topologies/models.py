"""Models by their shapes: configurations as their checkpoints have them, and tensors without a byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.backend import DType, TensorSource
from octavo.models.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model of Llama's architecture. like: a model of that shape. config: as in its `config.json`."""

    name: str
    like: str
    config: Mapping[str, Any]

    def checkpoint(self) -> Checkpoint:
        """A checkpoint whose tensors can be measured, and not read."""
        tensors = {name: AbsentTensor(name, shape, DType.BFLOAT16) for name, shape in _tensors(self.config)}
        return Checkpoint(Path(self.name), self.config, tensors)

    def shallow(self, layers: int) -> ModelShape:
        """The same with fewer layers, which compiles in a fraction of the time."""
        return ModelShape(f"{self.name}, {layers} layers", self.like, {**self.config, "num_hidden_layers": layers})


@dataclass(slots=True)
class AbsentTensor(TensorSource):
    """A tensor that has no content."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    shard_axis: int | None = None

    def read(self) -> np.ndarray:
        raise RuntimeError(f"{self.name} is a shape only; there is nothing to read.")

    def shard(self, rank: int, size: int) -> TensorSource:
        if self.shard_axis is None or size == 1:
            return self
        shape = list(self.shape)
        shape[self.shard_axis], rest = divmod(shape[self.shard_axis], size)
        if rest:
            raise ValueError(f"{self.name}: axis {self.shard_axis} does not divide into {size} shards.")
        return replace(self, shape=tuple(shape))


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for index in range(config["num_hidden_layers"]):
        yield from ((f"model.layers.{index}.{name}.weight", shape) for name, shape in layer.items())
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def _llama(factor: float, **sizes: Any) -> Mapping[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": scaling,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
        **sizes,
    }


MODELS: Mapping[str, ModelShape] = {
    "1B": ModelShape(
        "1B",
        "Llama-3.2-1B",
        _llama(
            32.0,
            num_hidden_layers=16,
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            tie_word_embeddings=True,
        ),
    ),
    "8B": ModelShape(
        "8B",
        "Llama-3.1-8B",
        _llama(
            8.0,
            num_hidden_layers=32,
            hidden_size=4096,
            intermediate_size=14336,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=False,
        ),
    ),
}
