"""What the PyTorch backends share: a device on torch tensors, and the contract's operations on them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo_torch.device import TorchDevice
    from octavo_torch.ops import TorchOps

__all__ = ["TorchDevice", "TorchOps"]

_HOMES = {"TorchDevice": "octavo_torch.device", "TorchOps": "octavo_torch.ops"}


def __getattr__(name: str) -> Any:
    """Import torch when a name that needs it is asked for: `octavo backends` looks at every plugin, and none pays."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
