"""Operations that are called outside of a program: each becomes a program of its own.

Core calls some so (`copy_blocks`), and conformance all of them. Their programs are compiled, counted and kept as steps
are. Inside a program they are traced as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from octavo.backend import Array, Ops
from octavo.backend.tree import flatten, unflatten
from octavo_xla.compiling import COMPILER_OPTIONS, Compilations
from octavo_xla.donation import taken_over
from octavo_xla.mesh import ShardMesh, spec_of
from octavo_xla.packing import form
from octavo_xla.program_table import ProgramTable

_IN_PLACE = ("write_kv", "copy_blocks", "rotary_write_kv")
"""Those that take the KV cache over: it is donated."""


class EagerOps(Ops):
    """`ops` on the arrays of a mesh, traced or not."""

    def __init__(self, ops: Ops, mesh: ShardMesh, compilations: Compilations) -> None:
        self._ops, self._mesh, self._compilations = ops, mesh, compilations
        self._programs: ProgramTable[Hashable, tuple[Callable[..., Any], Hashable]] = ProgramTable(compilations.room)

    def run(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """One operation, by name. Raises DeviceLostError where it fails with a KV cache that it had taken over."""
        leaves, structure = flatten((arguments, keywords))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return getattr(self._ops, name)(*arguments, **keywords)
        donated = self._donated(name, arguments, leaves)
        key = (name, structure, donated, tuple(map(_kind, leaves)))
        if (found := self._programs.get(key)) is None:
            found = self._programs.keep(key, self._build(name, structure, donated, leaves))
        program, result = found
        taken, given = _parted(leaves, donated)
        with taken_over(f"{name} outside of a step", taken):
            returned = program(taken, given)
        return unflatten(result, returned)

    # ---------------------------------------------------------------------------------------------------- details

    def _donated(self, name: str, arguments: tuple[Any, ...], leaves: Sequence[Any]) -> tuple[int, ...]:
        """Which leaves are the KV cache's."""
        if name not in _IN_PLACE:
            return ()
        kv, _ = flatten(arguments[-2] if name == "rotary_write_kv" else arguments[0])
        cache = {id(leaf) for leaf in kv}
        return tuple(index for index, leaf in enumerate(leaves) if id(leaf) in cache)

    def _build(
        self, name: str, structure: Hashable, donated: tuple[int, ...], leaves: Sequence[Any]
    ) -> tuple[Callable[..., Any], Hashable]:
        """The program, and the structure of what it returns."""
        results: list[Hashable] = []
        operation = getattr(self._ops, name)

        def program(taken: list[Array], given: list[Array]) -> list[Array]:
            first, second = iter(taken), iter(given)
            merged = [next(first) if index in donated else next(second) for index in range(len(leaves))]
            arguments, keywords = unflatten(structure, merged)
            result, kind = flatten(operation(*arguments, **keywords))
            results[:] = [kind]
            return result

        program.__name__ = name  # names it on disk, too
        whole: Callable[..., Any] = program
        if donated and self._mesh.size > 1:
            # Each shard has heads of its own, and writes what it is given to them.
            specs = [spec_of(leaves[index]) for index in donated]
            everywhere = PartitionSpec()
            whole = jax.shard_map(
                program, mesh=self._mesh.mesh, in_specs=(specs, everywhere), out_specs=specs, check_vma=False
            )
        jitted = jax.jit(whole, donate_argnums=(0,), compiler_options=dict(COMPILER_OPTIONS))
        compiled = self._compilations.compile(f"{name} outside of a step", jitted, _parted(leaves, donated))
        return compiled, results[0]


def _parted(leaves: Sequence[Any], donated: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    """Those that are donated, and the others."""
    taken = [leaf for index, leaf in enumerate(leaves) if index in donated]
    return taken, [leaf for index, leaf in enumerate(leaves) if index not in donated]


def _kind(leaf: Any) -> Hashable:
    """What a program is compiled for: an array's shape, dtype, whether that gives way to others, and place."""
    return form(leaf), getattr(leaf, "weak_type", False), getattr(leaf, "sharding", None)


def _method(name: str) -> Callable[..., Any]:
    def method(self: EagerOps, *arguments: Any, **keywords: Any) -> Any:
        return self.run(name, arguments, keywords)

    method.__name__ = name
    method.__doc__ = getattr(Ops, name).__doc__
    return method


for _name in [name for name in vars(Ops) if not name.startswith("_")]:
    setattr(EagerOps, _name, _method(_name))
