"""The sampler's operations where XLA's own order or rounding could show."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo_xla.ops.sampling import probability_units, top_k


def test_zeros_of_either_sign_are_equal_and_the_lowest_index_wins():
    x = jnp.array([[-1.0, -0.0, 0.0, -0.0, 0.0]])
    values, indices = jax.jit(lambda x: top_k(x, 4))(x)
    assert indices.tolist() == [[1, 2, 3, 4]]
    assert values.tolist() == [[0.0] * 4]


def test_masked_rows_keep_the_order_of_their_indices():
    x = jnp.array([[-jnp.inf, 2.0, -jnp.inf, jnp.inf]])
    _, indices = top_k(x, 4)
    assert indices.tolist() == [[3, 1, 0, 2]]


@pytest.mark.parametrize("n", [1, 127, 128, 129, 49_152])
def test_a_row_has_the_same_units_in_every_batch(n):
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((33, n)) * 3).astype(np.float32)
    temperatures = rng.uniform(0.1, 3.0, 33).astype(np.float32)
    units = jax.jit(probability_units)
    together = np.asarray(units(x, temperatures))
    for rows in (1, 2, 5, 8, 17):
        np.testing.assert_array_equal(np.asarray(units(x[:rows], temperatures[:rows])), together[:rows])
