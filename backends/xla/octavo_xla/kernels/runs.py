"""Which rows of a paged cache a step writes: runs of tokens, grouped by the tile of registers that holds them.

The slots of a prompt follow each other and those of decodes lie anywhere; both become runs of consecutive tokens in
consecutive slots. A group is all that a step (or a tile of its tokens) writes into one stretch of `height` slots, the
least that can be copied: it is read, merged and written once, whatever the order of the tokens, so that no two copies
in flight touch the same memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

_NOWHERE = jnp.iinfo(jnp.int32).max


class RunList(NamedTuple):
    """The runs of each tile of tokens; all int32.

    groups [tiles]: how many each tile has. first_run [tiles, tokens + 1]: of each group, and after the last one the
    number of runs. token, slot, length [tiles, tokens]: of each run; its first token, counted in the tile, and slot.
    """

    groups: Array
    first_run: Array
    token: Array
    slot: Array
    length: Array


def run_list(slots: Array, tile: int, block_size: int, height: int) -> RunList:
    """The runs of `slots` int32 [tiles * tile]. Slots of the null block are written by nobody.

    height divides block_size. No other slot comes twice in a tile.
    """
    slots = slots.reshape(-1, tile)
    keys = jnp.where(slots < block_size, _NOWHERE, slots)
    place = jnp.broadcast_to(jnp.arange(tile, dtype=jnp.int32), keys.shape)
    slot, token = lax.sort((keys, place), dimension=1, num_keys=1)
    real = slot < _NOWHERE
    last_slot, last_token = _shifted(slot), _shifted(token)
    opens_group = real & (slot // height != last_slot // height)
    opens_run = real & (opens_group | (slot != last_slot + 1) | (token != last_token + 1))
    runs = jnp.sum(opens_run, axis=1, keepdims=True, dtype=jnp.int32)
    start = lax.sort(jnp.where(opens_run, place, tile), dimension=1)
    until = jnp.minimum(_followed_by(start, tile)[:, 1:], jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32))
    index = jnp.cumsum(opens_run, axis=1, dtype=jnp.int32) - 1
    first_run = lax.sort(jnp.where(opens_group, index, tile), dimension=1)
    at = jnp.minimum(start, tile - 1)
    return RunList(
        groups=jnp.sum(opens_group, axis=1, dtype=jnp.int32),
        first_run=jnp.minimum(_followed_by(first_run, tile), runs),
        token=jnp.take_along_axis(token, at, axis=1),
        slot=jnp.take_along_axis(slot, at, axis=1),
        length=until - start,
    )


def _shifted(x: Array) -> Array:
    """Each entry's predecessor in its row; -1 for the first."""
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=-1)


def _followed_by(x: Array, value: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, 1)), constant_values=value)
