"""What an engine will use, decided before anything large is loaded: dtypes, block size, KV blocks, longest context."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.backend import Capabilities, Device, DeviceInfo, DType, KVLayout, UnsupportedError
from octavo.config import EngineConfig, parse_bytes
from octavo.errors import ConfigError, ModelError
from octavo.models.config import DecoderConfig
from octavo.models.weights import check_shards, parameter_count

SHARED_MEMORY_SHARE = 0.25
"""Part of the free memory that the KV cache takes unasked where the device's memory is the host's own ..."""

SHARED_MEMORY_CAP = 4 << 30
"""... and the most it takes there, in bytes: a server on somebody's laptop should not claim the machine."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The KV cache of one engine. num_blocks counts the null block."""

    layout: KVLayout
    num_blocks: int
    block_bytes: int
    max_model_len: int
    notes: tuple[str, ...] = ()

    @property
    def capacity(self) -> int:
        """Tokens that fit the cache."""
        return (self.num_blocks - 1) * self.layout.block_size

    @property
    def bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def max_concurrency(self) -> float:
        """Requests of the longest context that fit at the same time."""
        return self.capacity / self.max_model_len


def choose_dtype(config: EngineConfig, info: DeviceInfo, checkpoint: DType | None) -> DType:
    """The compute dtype. Raises UnsupportedError for one the device does not claim, ConfigError for no dtype at all."""
    capabilities = info.capabilities
    if config.dtype == "auto":
        if capabilities.default_dtype is not None:
            return capabilities.default_dtype
        return checkpoint if checkpoint is not None and checkpoint in capabilities.dtypes else capabilities.dtypes[0]
    return _claimed("dtype", config.dtype, capabilities.dtypes, info)


def choose_kv_dtype(config: EngineConfig, info: DeviceInfo, compute: DType) -> DType:
    """The KV cache's dtype: the compute dtype unless asked for otherwise. Raises as `choose_dtype`."""
    kv_dtypes = info.capabilities.kv_dtypes
    if config.kv_cache_dtype == "auto":
        return compute if compute in kv_dtypes else kv_dtypes[0]
    return _claimed("kv_cache_dtype", config.kv_cache_dtype, kv_dtypes, info)


def check_device(info: DeviceInfo, model: DecoderConfig) -> None:
    """Raises UnsupportedError where the device cannot run this model at all."""
    capabilities = info.capabilities
    if capabilities.head_sizes is not None and model.head_size not in capabilities.head_sizes:
        sizes = ", ".join(map(str, capabilities.head_sizes))
        raise UnsupportedError(f"The model's head size is {model.head_size}; backend {info.backend!r} does: {sizes}.")


def plan_cache(
    config: EngineConfig, device: Device, model: DecoderConfig, kv_dtype: DType, weights_to_come: int = 0
) -> CachePlan:
    """Size the KV cache from the device's memory as it is now.

    weights_to_come: bytes that weights will still take. Raises ConfigError, naming the largest value that fits, when
    the budget holds no request, or not one of the asked max_model_len.
    """
    block_size = _block_size(config, device.info.capabilities)
    shards = device.collectives.size
    layout = KVLayout(
        layers=model.layers,
        kv_heads=model.kv_heads // shards,
        head_size=model.head_size,
        block_size=block_size,
        dtype=kv_dtype,
        windows=model.windows,
        query_heads=model.heads // shards,
    )
    block_bytes = device.kv_block_bytes(layout)
    memory = _Memory.of(config, device, weights_to_come)
    budget, origin = _budget(config, memory)
    num_blocks = budget // block_bytes
    capacity = (num_blocks - 1) * block_size
    if capacity < min(2 * block_size, model.max_position):
        if weights_to_come and config.kv_cache_memory is None:
            raise ConfigError(_no_room(device, model, memory, f"{budget:,} bytes ({origin})", 3 * block_bytes))
        raise ConfigError(
            f"A KV cache of {budget:,} bytes ({origin}) is too small for one request: a block of {block_size} tokens "
            f"takes {block_bytes:,} bytes, one more is the null block, and a request needs at least two blocks: "
            f"{3 * block_bytes:,} bytes is the least."
        )
    notes: list[str] = []
    longest = config.max_model_len or model.max_position
    if longest > model.max_position:
        raise ConfigError(
            f"max_model_len is {longest}; this model was made for {model.max_position} tokens, which is the "
            "largest value."
        )
    if longest > capacity:
        if config.max_model_len is not None:
            need = (-(-longest // block_size) + 1) * block_bytes
            raise ConfigError(
                f"max_model_len is {longest}; a KV cache of {budget:,} bytes ({origin}) holds {capacity} tokens, which "
                f"is the largest value that fits. {longest} tokens need kv_cache_memory of {need:,} bytes."
            )
        notes.append(
            f"max_model_len is {capacity} instead of the model's {longest}: that is what {budget:,} bytes of KV cache "
            f"({origin}) hold."
        )
        longest = capacity
    if not config.enable_prefix_caching:
        # Every sequence at its longest is all that can be used then; with the prefix cache, more keeps more prefixes.
        useful = config.max_num_seqs * -(-longest // block_size) + 1
        if useful < num_blocks:
            notes.append(
                f"The KV cache has {useful} blocks instead of the {num_blocks} that {budget:,} bytes ({origin}) hold: "
                "without prefix caching, max_num_seqs sequences of max_model_len tokens need no more."
            )
            num_blocks = useful
    return CachePlan(layout, num_blocks, block_bytes, longest, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Memory:
    """Of one shard, in bytes. spare: what is free beside the weights. reserve: of it, what is left free unasked."""

    free: int
    weights: int
    spare: int
    reserve: int
    shared_with_host: bool

    @classmethod
    def of(cls, config: EngineConfig, device: Device, weights: int) -> _Memory:
        memory = device.memory()
        spare = max(0, memory.free - weights)
        if memory.shared_with_host:
            reserve = spare - min(int(spare * SHARED_MEMORY_SHARE), SHARED_MEMORY_CAP)
        else:
            reserve = int(memory.total * (1.0 - config.gpu_memory_utilization))
        return cls(memory.free, weights, spare, reserve, memory.shared_with_host)


def _budget(config: EngineConfig, memory: _Memory) -> tuple[int, str]:
    """Bytes for the KV cache, and what they come from."""
    if config.kv_cache_memory is not None:
        asked = parse_bytes("kv_cache_memory", config.kv_cache_memory)
        if asked > memory.spare:
            weights = f"weights of {memory.weights:,} bytes" if memory.weights else "the weights"
            raise ConfigError(
                f"kv_cache_memory is {asked:,} bytes; {memory.spare:,} are free beside {weights}, which is the largest "
                "value that fits."
            )
        return asked, "kv_cache_memory"
    origin = f"gpu_memory_utilization {config.gpu_memory_utilization:g}"
    if memory.shared_with_host:
        limit = f"{SHARED_MEMORY_CAP >> 30} GiB at most"
        origin = f"a quarter of the host's free memory, {limit}; set kv_cache_memory for more"
    return max(0, memory.spare - memory.reserve), origin


def _no_room(device: Device, model: DecoderConfig, memory: _Memory, left: str, least: int) -> str:
    """Why not one request fits beside the weights, and what would. least: bytes that one request needs."""
    reasons = f"The weights take {memory.weights:,} of the {memory.free:,} bytes that are free, and leave {left} for a "
    reasons += f"KV cache; one request needs {least:,}."
    offers = []
    if memory.spare >= least:
        offers.append(f"kv_cache_memory of {memory.spare:,} bytes is the largest that fits.")
    shards, most = device.collectives.size, device.info.capabilities.max_tensor_parallel
    if not memory.shared_with_host and (enough := _enough_shards(model, memory, shards, least)):
        offers.append(f"A tensor_parallel_size of {enough} would leave room; {most} is the largest here.")
    return " ".join([reasons, *(offers or ["A smaller model, or weights of fewer bits, would."])])


def _enough_shards(model: DecoderConfig, memory: _Memory, shards: int, least: int) -> int | None:
    """The smallest number of shards which leaves each the room that one request needs."""
    parameter_bytes = memory.weights / parameter_count(model, shards)
    for size in range(shards + 1, model.kv_heads + 1):
        try:
            check_shards(model, size)
        except ModelError:
            continue
        weights = parameter_count(model, size) * parameter_bytes
        if weights + memory.reserve + least * shards / size <= memory.free:
            return size
    return None


def _block_size(config: EngineConfig, capabilities: Capabilities) -> int:
    if config.block_size is None:
        return capabilities.block_sizes[0]
    if config.block_size not in capabilities.block_sizes:
        sizes = ", ".join(map(str, sorted(capabilities.block_sizes)))
        raise UnsupportedError(f"block_size is {config.block_size}; this backend does: {sizes}.")
    return config.block_size


def _claimed(name: str, value: str, claimed: tuple[DType, ...], info: DeviceInfo) -> DType:
    names = ", ".join(dtype.value for dtype in claimed)
    try:
        dtype = DType(value)
    except ValueError:
        raise ConfigError(f"{name} is {value!r}; backend {info.backend!r} does: auto, {names}.") from None
    if dtype not in claimed:
        raise UnsupportedError(f"{name} is {value!r}; backend {info.backend!r} does: auto, {names}.")
    return dtype
