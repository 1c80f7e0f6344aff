"""Operations that are called outside of a program: each becomes a program of its own.

Core calls some so (`copy_blocks`), and conformance all of them. Inside a program they are traced as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from octavo.backend import Array, Ops
from octavo.backend.tree import flatten, unflatten
from octavo_xla.compiling import COMPILER_OPTIONS
from octavo_xla.mesh import ShardMesh, spec_of

_IN_PLACE = ("write_kv", "copy_blocks", "rotary_write_kv")
"""Those that take the KV cache over: it is donated."""


class EagerOps(Ops):
    """`ops` on the arrays of a mesh, traced or not."""

    def __init__(self, ops: Ops, mesh: ShardMesh) -> None:
        self._ops, self._mesh = ops, mesh
        self._programs: dict[Hashable, tuple[Callable[..., Any], list[Hashable]]] = {}

    def run(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """One operation, by name."""
        leaves, structure = flatten((arguments, keywords))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return getattr(self._ops, name)(*arguments, **keywords)
        donated = self._donated(name, arguments, leaves)
        if (found := self._programs.get((name, structure, donated))) is None:
            found = self._programs[name, structure, donated] = self._build(name, structure, donated, leaves)
        program, results = found
        taken = [leaf for index, leaf in enumerate(leaves) if index in donated]
        given = [leaf for index, leaf in enumerate(leaves) if index not in donated]
        returned = program(taken, given)  # the first call traces it, which tells what it returns
        return unflatten(results[0], returned)

    def _donated(self, name: str, arguments: tuple[Any, ...], leaves: Sequence[Any]) -> tuple[int, ...]:
        """Which leaves are the KV cache's."""
        if name not in _IN_PLACE:
            return ()
        kv, _ = flatten(arguments[-2] if name == "rotary_write_kv" else arguments[0])
        cache = {id(leaf) for leaf in kv}
        return tuple(index for index, leaf in enumerate(leaves) if id(leaf) in cache)

    def _build(
        self, name: str, structure: Hashable, donated: tuple[int, ...], leaves: Sequence[Any]
    ) -> tuple[Callable[..., Any], list[Hashable]]:
        results: list[Hashable] = []
        operation = getattr(self._ops, name)

        def program(taken: list[Array], given: list[Array]) -> list[Array]:
            first, second = iter(taken), iter(given)
            merged = [next(first) if index in donated else next(second) for index in range(len(leaves))]
            arguments, keywords = unflatten(structure, merged)
            result, kind = flatten(operation(*arguments, **keywords))
            results[:] = [kind]
            return result

        whole: Callable[..., Any] = program
        if donated and self._mesh.size > 1:
            # Each shard has heads of its own, and writes what it is given to them.
            specs = [spec_of(leaves[index]) for index in donated]
            everywhere = PartitionSpec()
            whole = jax.shard_map(
                program, mesh=self._mesh.mesh, in_specs=(specs, everywhere), out_specs=specs, check_vma=False
            )
        return jax.jit(whole, donate_argnums=(0,), compiler_options=dict(COMPILER_OPTIONS)), results


def _method(name: str) -> Callable[..., Any]:
    def method(self: EagerOps, *arguments: Any, **keywords: Any) -> Any:
        return self.run(name, arguments, keywords)

    method.__name__ = name
    method.__doc__ = getattr(Ops, name).__doc__
    return method


for _name in [name for name in vars(Ops) if not name.startswith("_")]:
    setattr(EagerOps, _name, _method(_name))
