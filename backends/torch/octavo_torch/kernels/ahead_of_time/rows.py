"""The vendors' tuning tables, and which of their rows are of use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable

from octavo_torch.kernels.kernel import Kernel
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.targets import BACKENDS, TARGETS
from octavo_torch.kernels.tuning import Tunable, TuningTable

ENTRY_POINTS = "octavo.backends"


def vendor_tables() -> dict[str, Traversable]:
    """The tuning tables of the vendors whose packages are installed, by code generator."""
    installed = {backend.name: backend.module for backend in entry_points(group=ENTRY_POINTS)}
    return {
        generator: files(installed[name].partition(".")[0]) / "tuning.toml"
        for generator, name in BACKENDS.items()
        if name in installed
    }


@dataclass(frozen=True, slots=True)
class WatchedTable(TuningTable):
    """A tuning table that remembers which of its rows were of use: (kernel, number of the row, architecture)."""

    reached: set[tuple[str, int, str]] = field(default_factory=set)

    def choose(self, tunable: Tunable, arch: str, **facts: int | str) -> dict[str, int]:
        for number, row in enumerate(self.rows.get(tunable.kernel, ())):
            if row.matches(arch, facts):
                self.reached.add((tunable.kernel, number, arch))
                break
        return TuningTable.choose(self, tunable, arch, **facts)


def dead_rows(table: WatchedTable, targets: Sequence[Target], kernels: Sequence[Kernel]) -> Iterator[str]:
    """The rows of these kernels that no specimen reaches: on each of its architectures, or on any if it names none.

    targets: of the table's vendor, those that were planned for.
    """
    archs = [target.arch for target in targets]
    checked = {tunable.kernel for kernel in kernels for tunable in kernel.tunables}
    for kernel, rows in table.rows.items():
        for number, row in enumerate(rows if kernel in checked else ()):
            reached = [arch for arch in archs if (kernel, number, arch) in table.reached]
            if row.archs:
                missed = [arch for arch in row.archs if arch not in TARGETS or (arch in archs and arch not in reached)]
            else:
                missed = [] if reached else archs
            if missed:
                yield f"{kernel}: no specimen reaches row {number + 1} of the tuning table on {', '.join(missed)}."
