"""The two ways in which torch's operations are tried on lazy tensors."""

from __future__ import annotations

from enum import Enum

from octavo.backend import BackendUnavailableError, Kernel

AUTO = "auto"


class KernelName(str, Enum):
    TORCH = "torch"  # as every PyTorch backend has them
    STATIC = "static"  # what reads lengths on the host replaced by the contract's own operations


def kernels() -> tuple[Kernel, ...]:
    """Both kernels; "auto" takes the shared operations as they are."""
    return (
        Kernel(KernelName.TORCH.value, True, "the operations that the PyTorch backends share", selected=True),
        Kernel(KernelName.STATIC.value, True, "the same with attention and top-k that never wait for the host"),
    )


def choose(asked: str) -> KernelName:
    """The kernel of that name, or of "auto". Raises BackendUnavailableError for any other."""
    if asked == AUTO:
        return KernelName.TORCH
    try:
        return KernelName(asked)
    except ValueError:
        names = ", ".join(kernel.value for kernel in KernelName)
        raise BackendUnavailableError(f"Backend 'torch-xla' has no kernel {asked!r}; it has {names}.") from None
