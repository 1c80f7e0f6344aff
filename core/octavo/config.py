"""What an engine is built from: one frozen dataclass, the same names as the server's flags."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from octavo.errors import ConfigError

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of one engine.

    model: a directory, a `.gguf` file, a hub id, or `demo`.
    backend: a backend's name, or "auto" for the best one available.
    kernel: which of the backend's attention kernels to use, or "auto".
    dtype: "auto" (the device's choice for this checkpoint), "float32", "bfloat16" or "float16".
    kv_cache_dtype: "auto" is the compute dtype.
    max_model_len: longest prompt plus completion, in tokens; None takes the model's own limit, cut to what the KV
        budget holds if need be (and said so).
    kv_cache_memory: bytes for the KV cache, as a number or like "512MiB"; None takes `gpu_memory_utilization` of what
        is free once the weights are loaded (bounded on backends that share the host's memory).
    gpu_memory_utilization: part of a device's own memory that may be used, greater than 0 and at most 1.
    block_size: tokens a KV block holds; None takes the backend's preference.
    max_num_seqs: most sequences in one step.
    max_num_batched_tokens: most tokens in one step; longer prompts are prefilled in chunks.
    max_waiting: most requests that may queue; further ones are refused.
    enable_prefix_caching: share KV blocks between requests whose prompts start alike.
    tensor_parallel_size: devices that share each layer.
    threads: host threads, for backends that compute there; None is the backend's choice.
    seed: seeds the requests that bring none of their own.
    check_integrity: verify the block manager after every step (tests).
    sanitize: hand out KV blocks in a shuffled order and fill with NaN each block that nobody owns: what reads a slot it
        does not own is seen (tests).
    warm_up_seconds: at start-up on an accelerator, steps are compiled and recorded: one prefill and the largest decode,
        and others until this time is over. The rest are when they are first used. 0 leaves all of them. Host devices
        have no warm-up.
    backend_options: handed to the backend as they are.
    """

    model: str = "demo"
    backend: str = "auto"
    kernel: str = "auto"
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    kv_cache_memory: int | str | None = None
    gpu_memory_utilization: float = 0.9
    block_size: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_waiting: int = 1024
    enable_prefix_caching: bool = True
    tensor_parallel_size: int = 1
    threads: int | None = None
    seed: int = 0
    check_integrity: bool = False
    sanitize: bool = False
    warm_up_seconds: float = 20.0
    backend_options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_waiting", "tensor_parallel_size"):
            _at_least_one(name, getattr(self, name))
        for name in ("max_model_len", "block_size", "threads"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens} and max_num_seqs is {self.max_num_seqs}; "
                "each running sequence gets a token in every step, so the largest max_num_seqs that fits is "
                f"{self.max_num_batched_tokens}."
            )
        share = self.gpu_memory_utilization
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 < share <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization must be greater than 0 and at most 1, and is {self.gpu_memory_utilization!r}."
            )
        seconds = self.warm_up_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.0 <= seconds < math.inf:
            raise ConfigError(f"warm_up_seconds must be a number of seconds of at least 0, and is {seconds!r}.")
        if self.kv_cache_memory is not None and parse_bytes("kv_cache_memory", self.kv_cache_memory) < 1:
            raise ConfigError(f"kv_cache_memory must be at least one byte, and is {self.kv_cache_memory!r}.")


def parse_bytes(name: str, value: int | str) -> int:
    """Bytes from a number or from text like "512MiB", "2GB" or "1.5g"; units are powers of 1024 with an i or alone.

    Raises ConfigError where the text is no size.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _BYTES.fullmatch(str(value).strip())
    if match is None:
        raise ConfigError(f"{name} takes a number of bytes or a size such as 512MiB or 2GB, and got {value!r}.")
    number, prefix, suffix = match.groups()
    base = 1000 if suffix and suffix.lower() == "b" else 1024
    return int(float(number) * base ** " kmgt".index(prefix.lower() or " "))


def _at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, and is {value!r}.")
