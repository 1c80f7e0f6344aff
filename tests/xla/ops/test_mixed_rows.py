"""Rows that take weights of their own, experts and adapters: each alone with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo.backend import DenseWeight, ExpertWeights, LoRABank, Ops, array_ops
from octavo_xla.ops.experts import mixture_of_experts
from octavo_xla.ops.groups import by_group
from octavo_xla.ops.lora import AT_ONCE, lora

TOKENS, EXPERTS, HIDDEN, INTERMEDIATE, TOP_K = 48, 16, 24, 20, 3
RNG_SEED = 7


def layer() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(RNG_SEED)
    gate_up = rng.standard_normal((EXPERTS, 2 * INTERMEDIATE, HIDDEN)).astype(np.float32) / 5
    down = rng.standard_normal((EXPERTS, HIDDEN, INTERMEDIATE)).astype(np.float32) / 5
    x = rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32)
    return gate_up, down, x, rng.standard_normal((TOKENS, EXPERTS)).astype(np.float32)


def mixed(x, logits, gate_up, down):
    weights = ExpertWeights(DenseWeight(jnp.asarray(gate_up)), DenseWeight(jnp.asarray(down)))
    return jax.jit(lambda x, logits: mixture_of_experts(x, logits, weights, TOP_K))(x, logits)


@pytest.mark.parametrize("crowded", [None, 0, EXPERTS - 1])
def test_experts_with_no_row_and_with_every_row(crowded):
    gate_up, down, x, logits = layer()
    if crowded is not None:
        logits[:, crowded] = 9.0
        logits[:, 5] = -9.0
    weights = ExpertWeights(DenseWeight(gate_up), DenseWeight(down))
    expected = array_ops.mixture_of_experts(Ops(), x, logits, weights, TOP_K)
    np.testing.assert_allclose(mixed(x, logits, gate_up, down), expected, atol=1e-5)


def test_a_row_has_the_same_bits_whichever_rows_share_its_experts():
    gate_up, down, x, logits = layer()
    first = np.asarray(mixed(x, logits, gate_up, down))
    order = np.random.default_rng(1).permutation(TOKENS)
    np.testing.assert_array_equal(np.asarray(mixed(x[order], logits[order], gate_up, down)), first[order])
    others = logits.copy()
    others[1:] = np.random.default_rng(2).standard_normal(others[1:].shape)
    np.testing.assert_array_equal(np.asarray(mixed(x, others, gate_up, down))[0], first[0])


def test_an_expert_that_is_not_finite_reaches_only_the_rows_that_chose_it():
    gate_up, down, x, logits = layer()
    logits[:, 4] = -50.0
    logits[-1, 4] = 50.0
    clean = np.asarray(mixed(x, logits, gate_up, down))
    down[4] = np.nan
    spoiled = np.asarray(mixed(x, logits, gate_up, down))
    np.testing.assert_array_equal(spoiled[:-1], clean[:-1])
    assert np.isnan(spoiled[-1]).all()


def test_only_tiles_with_rows_are_computed_and_rows_without_a_group_are_zero():
    groups = 300
    ids = jnp.asarray(np.repeat([2, groups, 5], [9, 4, 3]).astype(np.int32))
    x = jnp.ones((16, 4))
    tiles: list[int] = []

    def function(rows, group):
        jax.debug.callback(lambda group: tiles.append(int(group)), group)
        return rows * group

    result = by_group(x, jnp.arange(16), ids, groups, 4, function)
    jax.effects_barrier()
    assert sorted(tiles) == [2, 2, 5]  # tiles of 8 rows
    np.testing.assert_array_equal(np.asarray(result)[:, 0], np.repeat([2.0, 0.0, 5.0], [9, 4, 3]))


def bank(adapters: int, rank: int) -> LoRABank:
    rng = np.random.default_rng(RNG_SEED)
    a, b = rng.standard_normal((adapters, rank, HIDDEN)), rng.standard_normal((adapters, INTERMEDIATE, rank))
    return LoRABank(a.astype(np.float32), b.astype(np.float32))


BANKS = {"all_at_once": bank(4, 8), "one_by_one": bank(AT_ONCE // 8 + 1, 8)}


def adapted(x, y, host, ids):
    on_device = LoRABank(jnp.asarray(host.a), jnp.asarray(host.b))
    return np.asarray(jax.jit(lambda x, y, ids: lora(x, y, on_device, ids))(x, y, ids))


@pytest.mark.parametrize("kind", BANKS)
def test_small_and_large_banks_give_each_row_its_own_adapter(kind):
    host, (*_, x, _) = BANKS[kind], layer()
    rng = np.random.default_rng(3)
    y = rng.standard_normal((TOKENS, INTERMEDIATE)).astype(np.float32)
    ids = rng.integers(-1, len(host.a), TOKENS).astype(np.int32)
    result = adapted(x, y, host, ids)
    np.testing.assert_allclose(result, array_ops.lora(x, y, host, ids), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result[ids == -1], y[ids == -1])


@pytest.mark.parametrize("kind", BANKS)
@pytest.mark.parametrize("side", ["a", "b"])
def test_an_adapter_that_is_not_finite_spoils_its_own_rows_alone(kind, side):
    host, (*_, x, _) = BANKS[kind], layer()
    y = np.ones((TOKENS, INTERMEDIATE), np.float32)
    ids = np.arange(TOKENS, dtype=np.int32) % 4 - 1
    clean = adapted(x, y, host, ids)
    broken = LoRABank(host.a.copy(), host.b.copy())
    getattr(broken, side)[2] = np.inf
    spoiled = adapted(x, y, broken, ids)
    np.testing.assert_array_equal(spoiled[ids != 2], clean[ids != 2])
    assert not np.isfinite(spoiled[ids == 2]).any()
