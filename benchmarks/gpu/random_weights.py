"""Weights that are made where they are used: random numbers on the device, the same for the same name and shape.

There is no checkpoint file. Whoever makes the tensor `model.layers.3.mlp.up_proj.weight` of one shape on one device
gets the same numbers, so two engines can be given the same model without either reading a file.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octavo.backend import (
    Array,
    ConcatenatedSource,
    Device,
    DType,
    KVCache,
    KVLayout,
    MemoryInfo,
    TensorSource,
    Weight,
    WeightRole,
)
from octavo.models.checkpoint import Checkpoint
from octavo.models.config import DecoderConfig

_DEVIATION = 0.02  # of a matrix, as models of this family are initialised


def fill(name: str, tensor: torch.Tensor) -> None:
    """Overwrite a tensor with the random numbers of this name: a matrix around 0, a norm's weight around 1."""
    generator = torch.Generator(tensor.device).manual_seed(zlib.crc32(name.encode()))
    mean, deviation = (0.0, _DEVIATION) if tensor.ndim > 1 else (1.0, _DEVIATION)
    with torch.no_grad():
        tensor.normal_(mean, deviation, generator=generator)


class RandomTensor(TensorSource):
    """A tensor of no file; `WeightMaker` makes it on its device."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: DType) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype

    def read(self) -> np.ndarray[Any, Any]:
        raise NotImplementedError(f"{self.name} is made on the device and never read.")

    def shard(self, rank: int, size: int) -> TensorSource:
        if size == 1:
            return self
        raise NotImplementedError(f"{self.name}: random weights are made for one device.")


def random_checkpoint(config: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of random tensors, in the names and shapes that a `config.json` of the Llama family calls for."""
    model = DecoderConfig.from_hf(config)
    shapes = _shapes(model)
    tensors = {name: RandomTensor(name, shape, model.dtype) for name, shape in shapes.items()}
    return Checkpoint(Path("random weights"), config, tensors)


def _shapes(model: DecoderConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = model.hidden_size, model.intermediate_size
    q, kv = model.heads * model.head_size, model.kv_heads * model.head_size
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (model.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (model.vocab_size, hidden),
    }
    for index in range(model.layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


class WeightMaker(Device):
    """A device as the loader of weights sees it, but for `load`, which makes random tensors instead of reading them."""

    def __init__(self, device: Device, torch_device: torch.device) -> None:
        self.info, self.ops, self.collectives = device.info, device.ops, device.collectives
        self._device, self._torch_device = device, torch_device

    def load(self, tensor: TensorSource, dtype: DType) -> Array:
        whole = torch.empty(tensor.shape, dtype=getattr(torch, dtype.value), device=self._torch_device)
        row = 0
        for part in tensor.parts if isinstance(tensor, ConcatenatedSource) else (tensor,):
            fill(part.name, whole[row : row + part.shape[0]])
            row += part.shape[0]
        return whole

    def prepare(self, weight: Weight, role: WeightRole) -> Weight:
        return self._device.prepare(weight, role)

    def upload(self, host: np.ndarray[Any, Any]) -> Array:
        return self._device.upload(host)

    def download(self, array: Array) -> np.ndarray[Any, Any]:
        return self._device.download(array)

    def allocate_kv(self, layout: KVLayout, blocks: int) -> KVCache:
        return self._device.allocate_kv(layout, blocks)

    def memory(self) -> MemoryInfo:
        return self._device.memory()
