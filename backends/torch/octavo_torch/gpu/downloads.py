"""From the card to the host: a step's outputs in one transfer that is queued right behind the step."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from octavo.backend.tree import flatten, unflatten
from octavo_torch.gpu.packing import Layout
from octavo_torch.gpu.pinned import Lease, PinnedPool
from octavo_torch.gpu.runtime import Mark, Runtime, wait


@dataclass(frozen=True, slots=True)
class _Transfer:
    """Arrays of `layout` on their way into a pinned buffer."""

    lease: Lease
    layout: Layout
    arrived: Mark


class Downloads:
    """The host's side of all transfers from one card.

    limit: seconds after which a card that does not finish is lost.
    """

    def __init__(self, runtime: Runtime, pool: PinnedPool, limit: float) -> None:
        self._runtime, self._pool, self._limit = runtime, pool, limit
        # Weak: what nobody downloads is forgotten with its tensor.
        self._under_way: MutableMapping[torch.Tensor, tuple[_Transfer, int]] = WeakTensorKeyDictionary()

    def send(self, outputs: Any) -> Any:
        """Start the outputs of a step on their way to the host; returns the same tree over packed arrays."""
        leaves, structure = flatten(outputs)
        return self.send_packed(*pack(leaves), structure)

    def send_packed(self, packed: torch.Tensor, layout: Layout, structure: Any) -> Any:
        """As `send`, for arrays that lie in one buffer already."""
        transfer = self._start(packed, layout)
        tensors = layout.tensors(packed)
        for index, tensor in enumerate(tensors):
            self._under_way[tensor] = (transfer, index)
        return unflatten(structure, tensors)

    def receive(self, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
        """An array on the host. Waits for its own transfer only, where `send` started one."""
        found = self._under_way.get(tensor)
        transfer, index = found if found is not None else (self._start(*pack([tensor])), 0)
        wait(transfer.arrived, self._limit)
        return transfer.lease.arrays(transfer.layout)[index].copy()

    def _start(self, packed: torch.Tensor, layout: Layout) -> _Transfer:
        lease = self._pool.take(layout.size)
        lease.tensor[: layout.size].copy_(packed, non_blocking=True)
        arrived = self._runtime.mark()
        lease.until(arrived)
        return _Transfer(lease, layout, arrived)


def pack(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, Layout]:
    """Copies of tensors of one device in one buffer there: uint8 [layout.size]."""
    layout = Layout.of([(tuple(tensor.shape), tensor.dtype) for tensor in tensors])
    packed = torch.empty(layout.size, dtype=torch.uint8, device=tensors[0].device if tensors else None)
    for place, tensor in zip(layout.tensors(packed), tensors, strict=True):
        place.copy_(tensor)
    return packed, layout
