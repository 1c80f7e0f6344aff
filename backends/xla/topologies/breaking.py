"""Kernels that are wrong on purpose: the check has to find them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from unittest.mock import patch

from octavo_xla.kernels.attention import attention
from octavo_xla.kernels.attention.sizes import Geometry, TileSizes, tile_sizes


@contextmanager
def too_much_vmem() -> Iterator[None]:
    """The attention kernel reads so many blocks at a time that no chip's vector memory holds them."""

    def oversized(geometry: Geometry, tokens: int) -> TileSizes:
        sizes = tile_sizes(geometry, tokens)
        return replace(sizes, blocks=64 * sizes.blocks)

    with patch.object(attention, "tile_sizes", oversized):
        yield


FAULTS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {"vmem": too_much_vmem}
