"""What a compiled program does, read from its HLO text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod

_COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>[\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%(?P<name>[\w.-]+) = (?P<made>.*?) (?P<opcode>[a-z][a-z0-9-]*)\(")
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+\d*\w*)\[(?P<sizes>[\d,]*)\]")
_FUSED = re.compile(r" fusion\(.*\bcalls=%(?P<name>[\w.-]+)")
_KERNEL = 'custom_call_target="tpu_custom_call"'

_VIEWS = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "optimization-barrier")
"""Instructions that make nothing: they name arrays that are there."""

_UPDATES = ("scatter", "dynamic-update-slice")
"""Instructions that write a part of an array in its place. Where XLA cannot do that it copies the array before."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of HLO. entries: of each array that it makes. fused: whether it is a part of another one, which
    keeps nothing of what it makes in memory. calls: the computation that a fusion stands for. kernel: the name of a
    Pallas kernel, else "".
    """

    name: str
    opcode: str
    entries: tuple[int, ...]
    fused: bool
    calls: str
    kernel: str


@dataclass(frozen=True, slots=True)
class Program:
    """roots: of each computation, the opcode of what it returns."""

    instructions: tuple[Instruction, ...]
    roots: dict[str, str]

    def count(self, opcode: str) -> int:
        """How often chips talk to each other so; what is started and waited for apart is counted once."""
        return sum(each.opcode in (opcode, f"{opcode}-start") for each in self.instructions)

    def kernels(self) -> Counter[str]:
        """Launches of each Pallas kernel."""
        return Counter(each.kernel for each in self.instructions if each.kernel)

    def copies(self, sizes: Collection[int]) -> tuple[str, ...]:
        """What makes an array of as many entries as one of these arrays has, or of more than any of them, and is no
        kernel and no update in place. The number of entries stays where a copy is made in another shape or order.
        """
        largest = max(sizes)
        return tuple(
            f"{each.opcode} {each.name}"
            for each in self.instructions
            if any(made in sizes or made > largest for made in each.entries)
            and not (each.fused or each.kernel or self._in_place(each))
        )

    def _in_place(self, instruction: Instruction) -> bool:
        if instruction.calls:
            return self.roots[instruction.calls] in _UPDATES
        return instruction.opcode in (*_VIEWS, *_UPDATES)


def read_program(text: str) -> Program:
    """The program that a compiled one's `as_text` describes."""
    fused = {found["name"] for found in _FUSED.finditer(text)}
    instructions, roots, computation = [], {}, ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            computation = opened["name"]
        elif found := _INSTRUCTION.match(line):
            calls = _FUSED.search(line)
            kernel = re.sub(r"[.\d]+$", "", found["name"]).rstrip("_") if _KERNEL in line else ""
            entries = tuple(_entries(found["made"]))
            instructions.append(
                Instruction(
                    found["name"],
                    found["opcode"],
                    entries,
                    computation in fused,
                    calls["name"] if calls else "",
                    kernel,
                )
            )
            if found["root"]:
                roots[computation] = found["opcode"]
    return Program(tuple(instructions), roots)


def _entries(made: str) -> Iterator[int]:
    for array in _ARRAY.finditer(made):
        yield prod(int(size) for size in array["sizes"].split(",") if size)
