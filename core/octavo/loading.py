"""From a configuration to a model on a device, ready to run; and the same decisions without loading anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from octavo.backend import BackendError, Device, DeviceConfig, DType
from octavo.backend.discovery import OpenedDevice, open_device
from octavo.config import EngineConfig
from octavo.errors import OctavoError
from octavo.models.checkpoint import Checkpoint, open_checkpoint
from octavo.models.config import DecoderConfig
from octavo.models.decoder import DecoderWeights
from octavo.models.resolve import ModelFiles, resolve_model
from octavo.models.tokenizer import Tokenizer, load_tokenizer
from octavo.models.weights import check_shards, load_weights, parameter_count
from octavo.planning import CachePlan, check_device, choose_dtype, choose_kv_dtype, plan_cache

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs, and why. notes: sentences for the operator; max_concurrency: longest contexts that fit at once."""

    model: str
    architecture: str
    backend: str
    device: str
    kernel: str
    dtype: str
    kv_cache_dtype: str
    max_model_len: int
    block_size: int
    num_blocks: int
    kv_cache_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    vocab_size: int
    max_concurrency: float
    weights_bytes: int
    eos_token_ids: tuple[int, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on a device."""

    info: EngineInfo
    device: Device
    model: DecoderConfig
    weights: DecoderWeights
    cache: CachePlan
    tokenizer: Tokenizer


def load_model(config: EngineConfig, progress: Progress | None = None) -> LoadedModel:
    """Resolve the model, open the backend, load the weights, size the KV cache.

    Raises OctavoError or octavo.backend.BackendError, before the weights are loaded wherever that can be told.
    """
    opened = _open(config)
    try:
        draft = _draft(config, opened, progress)
        device, model = opened.device, draft.model
        # Before the weights: a budget that cannot work should not cost the time to load them.
        cache = plan_cache(config, device, model, draft.kv_dtype, draft.weights_bytes)
        tokenizer = load_tokenizer(draft.files)
        weights = load_weights(
            model, draft.checkpoint, device, draft.dtype, positions=cache.max_model_len, progress=progress
        )
    except (OctavoError, BackendError):
        opened.device.close()
        raise
    except Exception as error:
        opened.device.close()
        raise load_failure(opened.device, error) from error
    return LoadedModel(_info(config, draft, cache, tokenizer.eos_token_ids), device, model, weights, cache, tokenizer)


def plan_engine(config: EngineConfig, progress: Progress | None = None) -> EngineInfo:
    """What `load_model` would run, without loading the weights. Raises as `load_model`."""
    opened = _open(config)
    try:
        draft = _draft(config, opened, progress)
        cache = plan_cache(config, opened.device, draft.model, draft.kv_dtype, draft.weights_bytes)
        return _info(config, draft, cache, ())
    finally:
        opened.device.close()


@dataclass(frozen=True, slots=True)
class _Draft:
    files: ModelFiles
    checkpoint: Checkpoint
    model: DecoderConfig
    opened: OpenedDevice
    dtype: DType
    kv_dtype: DType
    weights_bytes: int


def load_failure(device: Device, error: Exception) -> BackendError:
    """One sentence for what a device raised, unforeseen, while a model was loaded onto it."""
    name = device.info.backend
    return BackendError(f"Backend {name!r} failed while the model was loaded: {type(error).__name__}: {error}")


def _open(config: EngineConfig) -> OpenedDevice:
    return open_device(
        DeviceConfig(
            backend=config.backend,
            kernel=config.kernel,
            tensor_parallel_size=config.tensor_parallel_size,
            threads=config.threads,
            options=config.backend_options,
        )
    )


def _draft(config: EngineConfig, opened: OpenedDevice, progress: Progress | None) -> _Draft:
    files = resolve_model(config.model, progress)
    checkpoint = open_checkpoint(files)
    model = DecoderConfig.from_hf(checkpoint.config)
    info = opened.device.info
    check_device(info, model)
    check_shards(model, opened.device.collectives.size)
    dtype = choose_dtype(config, info, model.dtype)
    kv_dtype = choose_kv_dtype(config, info, dtype)
    weights_bytes = parameter_count(model, opened.device.collectives.size) * dtype.itemsize
    return _Draft(files, checkpoint, model, opened, dtype, kv_dtype, weights_bytes)


def _info(config: EngineConfig, draft: _Draft, cache: CachePlan, eos_token_ids: Iterable[int]) -> EngineInfo:
    device = draft.opened.device.info
    return EngineInfo(
        model=config.model,
        architecture=draft.model.architecture,
        backend=device.backend,
        device=f"{device.name} ({device.arch})",
        kernel=device.kernel,
        dtype=draft.dtype.value,
        kv_cache_dtype=draft.kv_dtype.value,
        max_model_len=cache.max_model_len,
        block_size=cache.layout.block_size,
        num_blocks=cache.num_blocks - 1,
        kv_cache_bytes=cache.bytes,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        vocab_size=draft.model.vocab_size,
        max_concurrency=cache.max_concurrency,
        weights_bytes=draft.weights_bytes,
        eos_token_ids=tuple(sorted(eos_token_ids)),
        notes=(draft.opened.reason, *device.notes, *cache.notes),
    )
