"""An engine over a model of random weights: `octavo.loading.load_model` without its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tokenizers

from benchmarks.gpu.random_weights import WeightMaker, random_checkpoint
from octavo.backend import Device
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.loading import EngineInfo, LoadedModel
from octavo.models.config import DecoderConfig
from octavo.models.tokenizer import Tokenizer
from octavo.models.weights import load_weights, parameter_count
from octavo.planning import check_device, choose_dtype, choose_kv_dtype, plan_cache

Stopwatch = Callable[[str, float], None]
"""Called with a phase and the seconds it took."""


def open_engine(
    device: Device, torch_device: Any, config: EngineConfig, shape: Mapping[str, Any], took: Stopwatch
) -> Engine:
    """An engine on an open device; `shape` is the model's `config.json`."""
    started = time.perf_counter()
    checkpoint, model = random_checkpoint(shape), DecoderConfig.from_hf(shape)
    info = device.info
    check_device(info, model)
    dtype = choose_dtype(config, info, model.dtype)
    kv_dtype = choose_kv_dtype(config, info, dtype)
    weights_bytes = parameter_count(model) * dtype.itemsize
    cache = plan_cache(config, device, model, kv_dtype, weights_bytes)
    tokenizer = word_tokenizer(model.vocab_size)
    started = _lap(took, "plan", started)
    weights = load_weights(model, checkpoint, WeightMaker(device, torch_device), dtype, positions=cache.max_model_len)
    device.download(device.upload(np.zeros(1, np.int32)))  # waits for a device that makes them behind the host
    started = _lap(took, "weights", started)
    described = EngineInfo(
        model=config.model,
        architecture=model.architecture,
        backend=info.backend,
        device=f"{info.name} ({info.arch})",
        kernel=info.kernel,
        dtype=dtype.value,
        kv_cache_dtype=kv_dtype.value,
        max_model_len=cache.max_model_len,
        block_size=cache.layout.block_size,
        num_blocks=cache.num_blocks - 1,
        kv_cache_bytes=cache.bytes,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        vocab_size=model.vocab_size,
        max_concurrency=cache.max_concurrency,
        weights_bytes=weights_bytes,
        eos_token_ids=(),
        notes=(*info.notes, *cache.notes),
    )
    engine = Engine(LoadedModel(described, device, model, weights, cache, tokenizer), config)
    _lap(took, "kv_cache", started)
    return engine


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of one word a token: detokenizing is part of serving, whatever the words are."""
    vocabulary = {f"w{number}": number for number in range(vocab_size)}
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0")), ())


def _lap(took: Stopwatch, phase: str, started: float) -> float:
    now = time.perf_counter()
    took(phase, now - started)
    return now
