"""flatten and unflatten: what a backend traces, captures and moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from octavo.backend import (
    Activation,
    AttentionMetadata,
    DenseWeight,
    ExpertWeights,
    QuantizedWeight,
    RotaryTable,
    StepInputs,
)
from octavo.backend.tree import flatten, tree_map, unflatten


def arrays(count: int) -> list[np.ndarray]:
    return [np.full(2, i, np.int32) for i in range(count)]


def test_step_inputs_flatten_to_their_arrays_in_order_and_come_back():
    parts = arrays(9)
    inputs = StepInputs(parts[0], parts[1], AttentionMetadata(*parts[2:8], decode_only=True), None, {"seeds": parts[8]})
    leaves, structure = flatten(inputs)
    assert [int(leaf[0]) for leaf in leaves] == list(range(9))
    rebuilt = unflatten(structure, leaves)
    assert rebuilt.attention.decode_only is True
    assert rebuilt.adapter_ids is None
    assert rebuilt.attention.block_tables is parts[7]
    assert rebuilt.sampling["seeds"] is parts[8]


def test_static_parts_belong_to_the_structure_and_arrays_do_not():
    def structure(decode_only: bool, value: int) -> Any:
        filled = [np.full(2, value, np.int32)] * 6
        return flatten(AttentionMetadata(*filled, decode_only=decode_only))[1]

    assert structure(True, 1) == structure(True, 2)
    assert hash(structure(True, 1)) == hash(structure(True, 2))
    assert structure(True, 1) != structure(False, 1)


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (0, None), ("silu", Activation.SILU), ([], ())])
def test_static_values_that_compare_equal_are_told_apart_by_type(one, other):
    assert flatten((one,))[1] != flatten((other,))[1]


def test_weights_nest_and_keep_their_settings():
    a, b, c, d = arrays(4)
    quantized = QuantizedWeight(a, b, None, 4, 32, bias=c)
    experts = ExpertWeights(quantized, DenseWeight(d), Activation.GELU, renormalize=False)
    leaves, structure = flatten([experts, (RotaryTable(a, interleaved=True),)])
    assert len(leaves) == 5
    (rebuilt, (table,)) = unflatten(structure, leaves)
    assert rebuilt.gate_up.group_size == 32
    assert rebuilt.activation is Activation.GELU
    assert not rebuilt.renormalize
    assert table.interleaved


def test_derived_fields_are_derived_again():
    @dataclass(frozen=True)
    class Padded:
        array: np.ndarray
        length: int = field(init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "length", len(self.array))

    assert tree_map(lambda array: array[:1], Padded(np.zeros(5))).length == 1


def test_mappings_keep_their_keys_and_order():
    a, b = arrays(2)
    leaves, structure = flatten(MappingProxyType({"b": b, "a": a}))
    assert leaves[0] is b
    assert list(unflatten(structure, leaves)) == ["b", "a"]


def test_tree_map_touches_arrays_only():
    mapped = tree_map(lambda array: array + 1, (arrays(1)[0], 7, None, "x", Activation.SILU))
    assert mapped[0].tolist() == [1, 1]
    assert mapped[1:] == (7, None, "x", Activation.SILU)
