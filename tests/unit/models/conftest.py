"""Tiny random models made by transformers, run through Octavo's own readers, decoder and paged cache in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from octavo.backend import AttentionMetadata, DeviceConfig, DType, KVLayout, StepInputs
from octavo.models.checkpoint import open_checkpoint
from octavo.models.config import DecoderConfig
from octavo.models.decoder import DecoderWeights, hidden_states, logits
from octavo.models.resolve import ModelFiles, resolve_model
from octavo.models.weights import load_weights
from octavo.reference.device import ReferenceDevice

BLOCK_SIZE, BLOCKS = 4, 64


class PagedModel:
    """A decoder with a paged cache on the reference device; blocks are handed out in a shuffled order."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, device: ReferenceDevice) -> None:
        self.config, self.weights, self.device = config, weights, device
        layout = KVLayout(config.layers, config.kv_heads, config.head_size, BLOCK_SIZE, DType.FLOAT32, config.windows)
        self.kv = device.allocate_kv(layout, BLOCKS)
        for layer in self.kv:
            layer[...] = np.nan  # a slot that nobody wrote must never be read
        self.free = list(np.random.default_rng(0).permutation(np.arange(1, BLOCKS)))
        self.tables: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}

    def step(self, chunks: Sequence[tuple[str, Sequence[int]]]) -> list[np.ndarray]:
        """Feed new tokens of several sequences at once; the logits of each new token, [tokens, vocab] a sequence."""
        tokens, positions, slots, rows, starts, lengths = [], [], [], [], [0], []
        for row, (name, new) in enumerate(chunks):
            table, begin = self.tables.setdefault(name, []), self.lengths.get(name, 0)
            for position in range(begin, begin + len(new)):
                if position // BLOCK_SIZE == len(table):
                    table.append(int(self.free.pop()))
                slots.append(table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
                positions.append(position)
            tokens += new
            rows += [row] * len(new)
            starts.append(len(tokens))
            self.lengths[name] = begin + len(new)
            lengths.append(begin + len(new))
        width = max(len(self.tables[name]) for name, _ in chunks)
        tables = [self.tables[name] + [0] * (width - len(self.tables[name])) for name, _ in chunks]
        arrays = (positions, slots, rows, starts, lengths, tables)
        inputs = StepInputs(
            token_ids=np.array(tokens, np.int32),
            logit_rows=np.arange(len(tokens), dtype=np.int32),
            attention=AttentionMetadata(*(np.array(array, np.int32) for array in arrays)),
        )
        ops, collectives = self.device.ops, self.device.collectives
        staged = self.device.stage(inputs)
        hidden, self.kv = hidden_states(self.config, ops, collectives, self.weights, self.kv, staged)
        rows = logits(ops, collectives, self.weights, hidden)
        assert rows.dtype == np.float32
        return np.split(rows, starts[1:-1])


@pytest.fixture
def open_model() -> Callable[[Path | str], PagedModel]:
    """Read a model's files as the engine does and put it on the reference device."""

    def open_(path: Path | str) -> PagedModel:
        checkpoint = open_checkpoint(resolve_model(str(path)))
        config = DecoderConfig.from_hf(checkpoint.config)
        device = ReferenceDevice(DeviceConfig())
        return PagedModel(config, load_weights(config, checkpoint, device, DType.FLOAT32), device)

    return open_


@pytest.fixture
def make_hf_model() -> Callable[[PreTrainedConfig], PreTrainedModel]:
    """A model of transformers with random numbers in every parameter, norms and biases included."""

    def make(config: PreTrainedConfig) -> PreTrainedModel:
        torch.manual_seed(0)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                scale = 0.2 if parameter.ndim == 1 else 0.6 / parameter.shape[-1] ** 0.5
                parameter.copy_(torch.randn_like(parameter) * scale + (parameter.ndim == 1))
        return model

    return make


@pytest.fixture
def hf_logits() -> Callable[[Any, Sequence[int]], np.ndarray]:
    """transformers' logits of every position, [tokens, vocab]."""

    def run(model: Any, tokens: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([list(tokens)])).logits[0].float().numpy()

    return run


@pytest.fixture(scope="session")
def demo_files() -> ModelFiles:
    """The demo model through Octavo's own cache."""
    return resolve_model("demo")
