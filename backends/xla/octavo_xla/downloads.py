"""From the device to the host: what a step returns, in one transfer that begins when the step ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.backend import Array
from octavo_xla.packing import Packing


@dataclass(slots=True)
class _Transfer:
    """Arrays of `packing` on their way, in one. host: they, once they are there."""

    words: Array
    packing: Packing
    host: list[np.ndarray] | None = None

    def array(self, index: int) -> np.ndarray:
        if self.host is None:
            self.host = self.packing.unpack_host(np.array(self.words))
        return self.host[index]


class Downloads:
    """Knows which arrays are under way to the host."""

    def __init__(self) -> None:
        # By id, since arrays have no hash; an array that nobody holds any more is forgotten.
        self._under_way: dict[int, tuple[_Transfer, int, weakref.ref[Any]]] = {}

    def begin(self, arrays: Sequence[Array], words: Array, packing: Packing) -> None:
        """Start the transfer of words int32 [words], which hold these arrays."""
        words.copy_to_host_async()
        transfer = _Transfer(words, packing)
        for index, array in enumerate(arrays):
            self._under_way[id(array)] = (transfer, index, weakref.ref(array, self._forget(id(array))))

    def receive(self, array: Any) -> np.ndarray:
        """An array on the host, the caller's own. Waits for its own transfer where `begin` started one."""
        found = self._under_way.get(id(array))
        return np.array(array) if found is None else found[0].array(found[1]).copy()

    def _forget(self, key: int) -> Callable[[Any], None]:
        under_way = self._under_way
        return lambda _: under_way.pop(key, None) and None
