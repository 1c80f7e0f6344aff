"""What the PyTorch backends share: a device on torch tensors, and the contract's operations on them."""

from __future__ import annotations

from octavo_torch.device import TorchDevice
from octavo_torch.ops import TorchOps

__all__ = ["TorchDevice", "TorchOps"]
