"""From the host to the card: through pinned buffers, queued, and a step's inputs in one transfer."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from octavo.backend import DType, StepInputs
from octavo.backend.tree import flatten, unflatten
from octavo_torch.arrays import torch_dtype
from octavo_torch.gpu.packing import Layout
from octavo_torch.gpu.pinned import PinnedPool
from octavo_torch.gpu.runtime import Mark, Runtime, wait

CHUNK = 32 << 20
"""Bytes of a large array that travel at a time: two chunks, one being read from the file and one on its way."""


_FORMS = 4096
"""Forms that are remembered. Prefills are of ever new ones; those of decode steps come again all the time."""


class Form:
    """What inputs have in common that one recorded graph serves: all but the values of their arrays.

    structure: of their tree. layout: of the arrays that travel in one transfer. loose: indices of the leaves that are
    on the card already. Compared by value; hashed once, since a step's structure is large.
    """

    __slots__ = ("_hash", "_key", "layout", "loose", "structure")

    def __init__(self, structure: Hashable, leaves: tuple[tuple[bool, tuple[int, ...], Any], ...]) -> None:
        """leaves: (whether it is on the host, shape, dtype) of each leaf."""
        self.structure = structure
        self.layout = Layout.of([(shape, torch_dtype(DType(dtype.name))) for host, shape, dtype in leaves if host])
        self.loose = tuple(index for index, (host, _, _) in enumerate(leaves) if not host)
        self._key = structure, leaves
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Form) and self._key == other._key)


@dataclass(frozen=True, slots=True)
class Staged:
    """A step's inputs on the card, as `stage` left them.

    inputs: what the step gets. leaves: its arrays, in the order of `tree.flatten`. packed: uint8, the buffer that all
    but the loose ones are views of.
    """

    inputs: StepInputs
    form: Form
    leaves: list[torch.Tensor]
    packed: torch.Tensor


class Uploads:
    """The host's side of all transfers to one card.

    limit: seconds after which a card that does not take its next chunk is lost.
    """

    def __init__(self, runtime: Runtime, pool: PinnedPool, limit: float) -> None:
        self._runtime, self._pool, self._limit = runtime, pool, limit
        self._last: Staged | None = None
        self._form = lru_cache(maxsize=_FORMS)(Form)

    def stage(self, inputs: StepInputs) -> StepInputs:
        """All NumPy arrays of a step in one transfer, each 16-byte aligned; the others stay as they are."""
        leaves, structure = flatten(inputs)
        hosts = [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]
        if not hosts:
            return inputs
        form = self._form(structure, _forms(leaves))
        size = form.layout.size
        lease = self._pool.take(size)
        for place, array in zip(lease.arrays(form.layout), hosts, strict=True):
            place[...] = array
        packed = torch.empty(size, dtype=torch.uint8, device=self._runtime.device)
        packed.copy_(lease.tensor[:size], non_blocking=True)
        lease.until(self._runtime.mark())
        views = iter(form.layout.tensors(packed))
        leaves = [next(views) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        staged: StepInputs = unflatten(structure, leaves)
        self._last = Staged(staged, form, leaves, packed)
        return staged

    def staged(self, inputs: StepInputs) -> Staged:
        """What is known of inputs on the card. Those that were not staged last are arrays of their own."""
        if self._last is not None and self._last.inputs is inputs:
            return self._last
        leaves, structure = flatten(inputs)
        nothing = torch.empty(0, dtype=torch.uint8, device=self._runtime.device)
        return Staged(inputs, self._form(structure, _forms(leaves)), leaves, nothing)

    def upload(self, host: np.ndarray[Any, Any]) -> torch.Tensor:
        """A copy of an array on the card."""
        target = torch.empty(host.shape, dtype=torch_dtype(DType.of(host)), device=self._runtime.device)
        self.fill(target.view(-1), host)
        return target

    def fill(self, target: torch.Tensor, host: np.ndarray[Any, Any]) -> None:
        """Copy an array into a flat tensor of the card, in C order, converted to the tensor's dtype over there."""
        source_dtype = torch_dtype(DType.of(host))
        start = 0
        on_their_way: deque[Mark] = deque()
        for piece in _pieces(host, CHUNK):
            if len(on_their_way) == 2:
                wait(on_their_way.popleft(), self._limit)
            stop = start + piece.size
            lease = self._pool.take(piece.nbytes)
            lease.array[: piece.nbytes].view(host.dtype).reshape(piece.shape)[...] = piece
            pinned = lease.tensor[: piece.nbytes].view(source_dtype)
            if source_dtype == target.dtype:
                target[start:stop].copy_(pinned, non_blocking=True)
            else:
                target[start:stop].copy_(pinned.to(self._runtime.device, non_blocking=True))
            on_their_way.append(self._runtime.mark())
            lease.until(on_their_way[-1])
            start = stop


def _forms(leaves: Sequence[Any]) -> tuple[tuple[bool, tuple[int, ...], Any], ...]:
    return tuple((isinstance(leaf, np.ndarray), tuple(leaf.shape), leaf.dtype) for leaf in leaves)


def _pieces(array: np.ndarray[Any, Any], limit: int) -> Iterator[np.ndarray[Any, Any]]:
    """Consecutive parts of an array in C order, of at most `limit` bytes."""
    if array.nbytes <= limit:
        yield array
    elif array.flags.c_contiguous:
        flat, step = array.reshape(-1), limit // array.itemsize
        for start in range(0, flat.size, step):
            yield flat[start : start + step]
    elif rows := limit // (array.nbytes // len(array)):
        for start in range(0, len(array), rows):
            yield array[start : start + rows]
    else:
        for row in array:
            yield from _pieces(row, limit)
