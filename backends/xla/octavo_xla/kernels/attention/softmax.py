"""The online softmax (Milakov and Gimelshein 2018) of a tile of queries, chunk by chunk of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from octavo_xla.kernels.attention.sizes import Geometry, TileSizes
from octavo_xla.kernels.tiling import Ref
from octavo_xla.kv import LANES

LOWEST = -1e30
"""The score of a key that is not seen. Finite, since -inf - -inf is NaN. A row that has seen no key yet adds such keys
up as if it saw them; its first real score wipes them out, and each row that counts has one."""


@dataclass(frozen=True, slots=True)
class OnlineSoftmax:
    """The state of each row. best, total [kv_heads, rows, LANES] hold a row's value in all lanes; acc [kv_heads, rows,
    width]; float32, VMEM."""

    best: Ref
    total: Ref
    acc: Ref

    @staticmethod
    def shapes(geometry: Geometry, sizes: TileSizes) -> list[Any]:
        """What to allocate, in the order of the fields."""
        rows = geometry.rows(sizes.tokens)
        wide = [LANES, LANES, geometry.width]
        return [pltpu.VMEM((geometry.kv_heads, rows, lanes), jnp.float32) for lanes in wide]

    def reset(self, sinks: Ref | None) -> None:
        """Nothing seen yet. sinks [kv_heads, rows, LANES]: scores that have no value but count in the denominator."""
        self.best[...] = jnp.full_like(self.best, LOWEST) if sinks is None else sinks[...]
        self.total[...] = jnp.full_like(self.total, 0.0 if sinks is None else 1.0)
        self.acc[...] = jnp.zeros_like(self.acc)

    def add(self, head: int, scores: jax.Array, values: jax.Array, value_scales: jax.Array | None) -> None:
        """A chunk's scores, float32 [rows, keys], and values [keys, width], each times its scale [1, keys]."""
        before = self.best[head]
        best = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        weights, decay = jnp.exp(scores - best[:, :1]), jnp.exp(before - best)
        self.best[head] = best
        self.total[head] = self.total[head] * decay + jnp.sum(weights, axis=1, keepdims=True)
        if value_scales is not None:
            weights = weights * value_scales
        self.acc[head] = self.acc[head] * decay[:, :1] + product(weights.astype(values.dtype), values, contract=0)

    def result(self, head: int) -> jax.Array:
        """float32 [rows, width]."""
        attended: jax.Array = self.acc[head] / self.total[head][:, :1]
        return attended


def product(left: jax.Array, right: jax.Array, contract: int) -> jax.Array:
    """left [rows, n] by the axis `contract` of right, summed in float32. A product of float32 would be one of bfloat16
    unless asked for more."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        left, right, (((1,), (contract,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
