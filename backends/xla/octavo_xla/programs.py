"""Compiled steps: one program for each shape in use, over a donated KV cache, with one transfer in and one out.

A program is named by what is static in a step: its tokens, its rows, and what the sampler does. The sizes that only
say how much of the block tables is used (sequences, blocks) are padded beyond the largest met so far (`tables`): the
operations of this backend look no further than the contexts go, so a wide table costs them little, and a compilation
costs seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from octavo.backend import (
    Array,
    Bucket,
    DeviceOutOfMemoryError,
    KVCache,
    Step,
    StepInputs,
)
from octavo.backend.tree import flatten, unflatten
from octavo_xla.compiling import COMPILER_OPTIONS, Compilations
from octavo_xla.donation import taken_over
from octavo_xla.downloads import Downloads
from octavo_xla.fitting import StepSizes, explanation
from octavo_xla.mesh import ShardMesh, spec_of
from octavo_xla.naming import step_name
from octavo_xla.packing import Form, Packing, form, packable, packed
from octavo_xla.program_table import ProgramTable
from octavo_xla.tables import StepTables, TableSize


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
            programs = self._programs[id(step)] = StepPrograms(step, bucket.variant, self)
        return programs

    def widened(self, inputs: StepInputs) -> StepInputs:
        """The inputs with block tables as wide as all steps have them. Programs of narrower ones are let go: no step
        will be of their shape again.
        """
        if self.tables.grow(inputs.attention):
            for programs in list(self._programs.values()):
                programs.forget_outgrown()
        widened = self.tables.widened(inputs.attention)
        return inputs if widened is inputs.attention else replace(inputs, attention=widened)


@dataclass(frozen=True, slots=True)
class _Program:
    """A step of one shape. results: the structures of its outputs and of the KV cache, and which outputs are sent."""

    run: Callable[..., Any]
    results: tuple[Hashable, Hashable, Packing, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Failure:
    """A step that did not compile. Its words are kept, and no exception, which would hold the arrays of its frames."""

    kind: type[Exception]
    words: str

    def error(self) -> Exception:
        return self.kind(self.words)


class _Key(NamedTuple):
    """What names a program. forms: of the arrays that are not packed, the KV cache's and others."""

    tables: StepTables
    kv: Hashable
    inputs: Hashable
    packing: Packing
    packed: tuple[int, ...]
    forms: tuple[tuple[Form, ...], tuple[Form, ...]]


class StepPrograms:
    """One step of core's, as programs; it is called like the step. variant: what else is static in it, for names."""

    def __init__(self, step: Step, variant: Any, compiler: StepCompiler) -> None:
        self._step, self._variant = step, variant
        self._compiler = compiler
        self._programs: ProgramTable[_Key, _Program | _Failure] = ProgramTable(compiler.compilations.room)
        self._weights: tuple[Any, list[Array], Hashable] | None = None

    def __call__(self, weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
        weight_leaves, weight_structure = self._flat_weights(weights)
        kv_leaves, kv_structure = flatten(kv)
        inputs = self._compiler.widened(inputs)
        leaves, structure = flatten(inputs)
        on_host = [index for index, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray) and packable(leaf)]
        chosen = frozenset(on_host)
        others = [leaf for index, leaf in enumerate(leaves) if index not in chosen]
        packing = Packing.of([leaves[index] for index in on_host])
        call = _Call((weight_structure, kv_structure, structure), packing, tuple(on_host), len(leaves))
        words = self._compiler.mesh.upload(packing.pack([leaves[index] for index in on_host]))
        arguments = (weight_leaves, kv_leaves, words, others)
        forms = tuple(map(form, kv_leaves)), tuple(map(form, others))
        key = _Key(StepTables.of(inputs.attention), kv_structure, structure, packing, call.packed, forms)
        program = self._program(key, call, arguments, inputs)
        with taken_over("A step", kv_leaves):
            outputs, sent, kept = program.run(*arguments)
        output_structure, kv_result, sent_packing, sent_indices = program.results
        self._compiler.downloads.begin([outputs[index] for index in sent_indices], sent, sent_packing)
        return unflatten(output_structure, outputs), unflatten(kv_result, kept)

    def forget_outgrown(self) -> None:
        """Let go of the programs whose block tables are smaller than those of any step to come."""
        for key in [key for key, _ in self._programs.uses() if self._compiler.tables.outgrows(key.tables)]:
            self._programs.forget(key)

    # ---------------------------------------------------------------------------------------------------- details

    def _flat_weights(self, weights: Any) -> tuple[list[Array], Hashable]:
        """Core calls a step with the same weights always: programs are kept for these, and no key names them."""
        if self._weights is None or self._weights[0] is not weights:
            self._weights = (weights, *flatten(weights))
            self._programs.clear()
        return self._weights[1], self._weights[2]

    def _program(self, key: _Key, call: _Call, arguments: Sequence[Any], inputs: StepInputs) -> _Program:
        """Compiled when it is first asked for, whether that succeeds or not: it would take as long to fail again."""
        found = self._programs.get(key)
        if isinstance(found, _Failure):
            raise found.error()
        if found is None:
            try:
                built = self._build(call, arguments, inputs)
            except jax.errors.JaxRuntimeError as error:
                failure = self._failure(error, arguments, inputs)
                self._programs.keep(key, failure)
                raise failure.error() from error
            self._programs.keep(key, built)
            return built
        return found

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

        program.__name__ = name = step_name(inputs, self._variant)
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
        jitted = jax.jit(whole, donate_argnums=(1,), compiler_options=dict(COMPILER_OPTIONS))
        run = self._compiler.compilations.compile(name, jitted, arguments)
        return _Program(run, results[0])

    def _failure(self, error: jax.errors.JaxRuntimeError, arguments: Sequence[Any], inputs: StepInputs) -> _Failure:
        weights, kv = arguments[:2]
        tokens, decode_only = len(inputs.token_ids), inputs.attention.decode_only
        sentence = explanation(str(error), StepSizes.of(tokens, decode_only, weights, kv, self._compiler.mesh.size))
        return _Failure(type(error), str(error)) if sentence is None else _Failure(DeviceOutOfMemoryError, sentence)


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
