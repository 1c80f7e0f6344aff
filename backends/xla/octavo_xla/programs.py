"""Compiled steps: one program for each shape in use, over a donated KV cache, with one transfer in and one out.

A program is named by what is static in a step: its tokens, its rows, and what the sampler does. The sizes that only
say how much of the block tables is used (sequences, blocks) are padded to the largest met so far: the operations of
this backend look no further than the contexts go, so a wide table costs them nothing, and a compilation costs seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from octavo.backend import (
    Array,
    AttentionMetadata,
    Bucket,
    DeviceLostError,
    DeviceOutOfMemoryError,
    KVCache,
    Step,
    StepInputs,
)
from octavo.backend.tree import flatten, unflatten
from octavo_xla.compiling import COMPILER_OPTIONS, Compilations
from octavo_xla.downloads import Downloads
from octavo_xla.fitting import StepSizes, explanation
from octavo_xla.mesh import ShardMesh, spec_of
from octavo_xla.packing import Packing, form, packable, packed


@dataclass(slots=True)
class TableSize:
    """The most sequences and blocks that a step had so far."""

    sequences: int = 0
    blocks: int = 0

    def grow(self, meta: AttentionMetadata) -> None:
        sequences, blocks = meta.block_tables.shape
        self.sequences, self.blocks = max(self.sequences, sequences), max(self.blocks, blocks)


class StepCompiler:
    """Makes the steps of one device fast."""

    def __init__(self, mesh: ShardMesh, downloads: Downloads, compilations: Compilations) -> None:
        self.mesh, self.downloads, self.compilations = mesh, downloads, compilations
        self.tables = TableSize()
        # Core passes one step for all buckets that differ in size alone: they share its programs.
        self._programs: weakref.WeakValueDictionary[int, StepPrograms] = weakref.WeakValueDictionary()

    def compile(self, step: Step, bucket: Bucket) -> Step:
        programs = self._programs.get(id(step))
        if programs is None:
            programs = self._programs[id(step)] = StepPrograms(step, self)
        return programs


@dataclass(slots=True)
class _Program:
    """A step of one shape. results: the structures of its outputs and of the KV cache; known once it is traced."""

    run: Callable[..., Any]
    results: list[tuple[Hashable, Hashable, Packing, tuple[int, ...]]] = field(default_factory=list)


class StepPrograms:
    """One step of core's, as programs; it is called like the step."""

    def __init__(self, step: Step, compiler: StepCompiler) -> None:
        self._step = step
        self._compiler = compiler
        self._programs: dict[Hashable, _Program] = {}
        self._weights: tuple[Any, list[Array], Hashable] | None = None

    def __call__(self, weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
        weight_leaves, weight_structure = self._flat_weights(weights)
        kv_leaves, kv_structure = flatten(kv)
        leaves, structure = flatten(self._widened(inputs))
        on_host = [index for index, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray) and packable(leaf)]
        chosen = frozenset(on_host)
        others = [leaf for index, leaf in enumerate(leaves) if index not in chosen]
        packing = Packing.of([leaves[index] for index in on_host])
        call = _Call((weight_structure, kv_structure, structure), packing, tuple(on_host), len(leaves))
        words = self._compiler.mesh.upload(packing.pack([leaves[index] for index in on_host]))
        arguments = (weight_leaves, kv_leaves, words, others)
        forms = tuple(map(form, kv_leaves)), tuple(map(form, others))
        key = (kv_structure, structure, packing, call.packed, forms)
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._build(call, arguments, inputs)
        try:
            outputs, sent, kept = program.run(*arguments)
        except Exception as error:
            if any(leaf.is_deleted() for leaf in kv_leaves):
                raise DeviceLostError(f"A step failed after it had taken the KV cache: {error}") from error
            raise
        output_structure, kv_result, sent_packing, sent_indices = program.results[0]
        self._compiler.downloads.begin([outputs[index] for index in sent_indices], sent, sent_packing)
        return unflatten(output_structure, outputs), unflatten(kv_result, kept)

    # ---------------------------------------------------------------------------------------------------- details

    def _flat_weights(self, weights: Any) -> tuple[list[Array], Hashable]:
        """Core calls a step with the same weights always: programs are kept for these, and no key names them."""
        if self._weights is None or self._weights[0] is not weights:
            self._weights = (weights, *flatten(weights))
            self._programs.clear()
        return self._weights[1], self._weights[2]

    def _widened(self, inputs: StepInputs) -> StepInputs:
        """The inputs with block tables of the largest size so far, where they are on the host still."""
        meta, tables = inputs.attention, self._compiler.tables
        tables.grow(meta)
        count, width = meta.block_tables.shape
        arrays = (meta.block_tables, meta.query_starts, meta.context_lengths)
        if (count, width) == (tables.sequences, tables.blocks) or not all(
            isinstance(array, np.ndarray) for array in arrays
        ):
            return inputs
        missing = tables.sequences - count
        wide = replace(
            meta,
            block_tables=np.pad(meta.block_tables, ((0, missing), (0, tables.blocks - width))),
            query_starts=np.pad(meta.query_starts, (0, missing), mode="edge"),
            context_lengths=np.pad(meta.context_lengths, (0, missing)),
        )
        return replace(inputs, attention=wide)

    def _build(self, call: _Call, arguments: Sequence[Any], inputs: StepInputs) -> _Program:
        results: list[Any] = []
        step = self._step

        def program(weights: list[Array], kv: list[Array], words: Array, others: list[Array]) -> Any:
            trees = call.trees(weights, kv, words, others)
            outputs, kept = step(*trees)
            leaves, structure = flatten(outputs)
            kept_leaves, kept_structure = flatten(kept)
            sent = tuple(index for index, leaf in enumerate(leaves) if packable(leaf))
            results[:] = [(structure, kept_structure, Packing.of([leaves[index] for index in sent]), sent)]
            return leaves, packed([leaves[index] for index in sent]), kept_leaves

        mesh = self._compiler.mesh
        whole: Callable[..., Any] = program
        if mesh.size > 1:
            weight_specs, kv_specs = ([spec_of(leaf) for leaf in group] for group in arguments[:2])
            everywhere = PartitionSpec()
            whole = jax.shard_map(
                program,
                mesh=mesh.mesh,
                in_specs=(weight_specs, kv_specs, everywhere, everywhere),
                out_specs=(everywhere, everywhere, kv_specs),
                check_vma=False,  # what is the same on all shards is so by the model's own all-reduces
            )
        meta = inputs.attention
        name = (
            f"{len(inputs.token_ids)} tokens, {len(inputs.logit_rows)} rows, "
            f"{'decodes' if meta.decode_only else 'prefills too'}"
        )
        jitted = jax.jit(whole, donate_argnums=(1,), compiler_options=dict(COMPILER_OPTIONS))
        try:
            return _Program(self._compiler.compilations.compile(name, jitted, arguments), results)
        except jax.errors.JaxRuntimeError as error:
            weights, kv = arguments[:2]
            sizes = StepSizes.of(len(inputs.token_ids), meta.decode_only, weights, kv, mesh.size)
            if (sentence := explanation(str(error), sizes)) is None:
                raise
            raise DeviceOutOfMemoryError(sentence) from error


@dataclass(frozen=True, slots=True)
class _Call:
    """How a program's arguments make a step's. structures: of weights, KV cache and inputs. packing: of the inputs'
    leaves `packed`, out of `leaves`; the others come by themselves.
    """

    structures: tuple[Hashable, Hashable, Hashable]
    packing: Packing
    packed: tuple[int, ...]
    leaves: int

    def trees(self, weights: list[Array], kv: list[Array], words: Array, others: list[Array]) -> tuple[Any, ...]:
        found = dict(zip(self.packed, self.packing.unpack(words), strict=True))
        rest = iter(others)
        inputs = [found[index] if index in found else next(rest) for index in range(self.leaves)]
        groups = (weights, kv, inputs)
        return tuple(unflatten(structure, group) for structure, group in zip(self.structures, groups, strict=True))
