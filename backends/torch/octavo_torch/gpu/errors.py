"""What torch and the drivers raise, in the contract's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from octavo.backend import DeviceLostError, DeviceOutOfMemoryError
from octavo_torch.gpu.runtime import Runtime

_FULL = ("out of memory", "out_of_device_memory", "out_of_host_memory", "_alloc_failed")
"""In an allocator's message, and in what the drivers and their libraries say themselves."""

_FROM_A_DRIVER = (
    "cuda error",
    "cuda driver error",
    "hip error",
    "hip driver error",
    "triton error",
    "ur error",
    "ur_result_error",
    "level-zero error",
    "device-side assert",
)

_HARMLESS = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "no kernel image",
    "too many resources requested",
    "not_supported",
    "not supported",
    "captur",  # of a graph
)
"""Refusals after which a driver goes on as before; after its other errors every call fails until the process ends."""


@contextmanager
def in_contract_words(runtime: Runtime, doing: str) -> Iterator[None]:
    """Raises DeviceOutOfMemoryError or DeviceLostError for what those are; lets everything else pass.

    doing: what was asked, as the beginning of a sentence: "A step".
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError and torch.AcceleratorError are ones
        text = str(error)
        if is_full(error):
            raise DeviceOutOfMemoryError(f"{doing} does not fit the device's memory: {_memory(runtime)}") from error
        if _any(_FROM_A_DRIVER, text) and not _any(_HARMLESS, text):
            raise DeviceLostError(
                f"{doing} failed on the device, which cannot be used any more: {_first_line(error)}"
            ) from error
        raise


def is_full(error: Exception) -> bool:
    """Whether it says that the card's memory, or the host's for the driver, does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or _any(_FULL, str(error))


def _first_line(error: Exception) -> str:
    """What is the driver's own; torch adds advice for those who write kernels."""
    return str(error).partition("\n")[0]


def _any(parts: tuple[str, ...], text: str) -> bool:
    lower = text.lower()
    return any(part in lower for part in parts)


def _memory(runtime: Runtime) -> str:
    try:
        memory = runtime.memory()
    except RuntimeError as error:  # a driver out of memory may not even answer this
        return f"its driver does not say how much is free ({_first_line(error)}); another process may hold it."
    return f"{memory.free:,} of {memory.total:,} bytes are free."
