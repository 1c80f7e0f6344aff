"""A fault: text of a kernel's source that is replaced, in a copy of the package of the kernels."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "backends" / "torch" / "octavo_torch"


class NoSuchTextError(Exception):
    """A fault whose text is not in its kernel, or in more than one place: the kernel was changed."""


@dataclass(frozen=True, slots=True)
class KernelFault:
    """One mistake in the source of a kernel.

    what: a sentence. op: the operation that is wrong. file: in the folder of the kernels. old, new: text that occurs
    once in it, and what stands there instead. near: part of the names of the cases that should notice, which go first.
    """

    name: str
    what: str
    op: str
    file: str
    old: str
    new: str
    near: str = ""

    def source(self) -> str:
        """The kernel's file with the fault. Raises NoSuchTextError."""
        text = (PACKAGE / "kernels" / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise NoSuchTextError(f"{self.name}: {self.old!r} is {text.count(self.old)} times in {self.file}.")
        return text.replace(self.old, self.new)


def copy_package(folder: Path, fault: KernelFault | None = None) -> None:
    """Write the package into `folder`, which is to go on PYTHONPATH, with the fault or as it is."""
    copy = folder / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    if fault is not None:
        (copy / "kernels" / fault.file).write_text(fault.source(), encoding="utf-8")
