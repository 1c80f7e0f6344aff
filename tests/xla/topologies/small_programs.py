"""Small programs on chips that are not there, with the KV cache of a step as large as one likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from topologies.chips import CHIPS
from topologies.device import TopologyMesh, absent

BLOCK_SIZE = 32
BLOCK = 8 * BLOCK_SIZE * 128 * 2
"""Bytes of a block of eight heads of 64."""


def mesh(chip: str = "v5e", size: int = 1) -> TopologyMesh:
    return TopologyMesh(CHIPS[chip].devices(size), size)


def pool(blocks: int, on: TopologyMesh) -> Any:
    return absent((blocks, 8, BLOCK_SIZE, 128), jnp.bfloat16, on.whole)


def matrix(rows: int, columns: int, on: TopologyMesh) -> Any:
    return absent((rows, columns), jnp.bfloat16, on.whole)


def compiled(function: Callable[..., Any], *arguments: Any, donated: tuple[int, ...] = (0,)) -> Any:
    return jax.jit(function, donate_argnums=donated).lower(*arguments).compile()


def message(function: Callable[..., Any], *arguments: Any) -> str:
    """What the compiler says of a program that it refuses; "" where it takes it."""
    try:
        compiled(function, *arguments)
    except jax.errors.JaxRuntimeError as error:
        return str(error)
    return ""
