"""`python -m octavo_torch.kernels.ahead_of_time`: compile and judge; exit code 1 where something is wrong."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

import triton
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from octavo_torch.gpu.probe import interpreting
from octavo_torch.kernels.ahead_of_time.budget import Budget, judge, renewed, stale
from octavo_torch.kernels.ahead_of_time.build import Failure, FigureCache, Outcome, build
from octavo_torch.kernels.ahead_of_time.plan import Entry, plan
from octavo_torch.kernels.ahead_of_time.rows import WatchedTable, dead_rows, vendor_tables
from octavo_torch.kernels.ahead_of_time.specialise import Specialised, generators
from octavo_torch.kernels.ahead_of_time.table import page
from octavo_torch.kernels.catalog import CATALOG, tunables
from octavo_torch.kernels.kernel import Kernel
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.targets import TARGETS
from octavo_torch.kernels.tuning import TuningTable

BUDGETS = Path(__file__).parents[3] / "budgets"
QUICK = 24
"""Of so many specimens `--quick` takes one, for each target another one."""


def main(arguments: Sequence[str]) -> int:
    # What Triton does where nothing is set; later releases have another default, and this one warns of that.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        return check(options, console)
    except ValueError as error:
        console.print(str(error), style="red", markup=False)
        return 2


def check(options: argparse.Namespace, console: Console) -> int:
    """Plan, compile, judge, write. Returns the exit code; raises ValueError for what cannot be asked for."""
    if interpreting():
        raise ValueError("With TRITON_INTERPRET=1 nothing can be compiled; unset it.")
    start = time.perf_counter()
    targets, kernels = _targets(options.target), _kernels(options.kernel)
    tables = _tables(options.tuning, targets)
    entries: list[Entry] = []
    for number, target in enumerate(targets):
        # Evenly spread over the architectures, so that a kernel of few specimens has its turn on one of them.
        share = (number * QUICK // len(targets), QUICK) if options.quick else None
        entries += plan(target, tables[target.generator], kernels, share)
    outcomes = _compiled(entries, FigureCache(options.cache), options.jobs, console)
    names = [kernel.name for kernel in kernels]
    budgets = {target.arch: Budget.read(options.budgets / f"{target.arch}.toml") for target in targets}
    if options.write_budgets:
        for arch, budget in budgets.items():
            own = [(entry, outcome) for entry, outcome in outcomes if entry.target.arch == arch]
            budgets[arch] = renewed(own, budget, triton.__version__, names)
            budgets[arch].write(options.budgets / f"{arch}.toml")
    if options.table:
        options.table.write_text(page(outcomes, targets, budgets, triton.__version__), encoding="utf-8")
    problems = [
        f"{entry.target.arch}: {entry.kernel}: {entry.name}: {problem}"
        for entry, outcome in outcomes
        for problem in judge(entry, outcome, budgets[entry.target.arch], triton.__version__)
    ]
    if not options.quick:
        problems += [line for budget in budgets.items() for line in stale(entries, *budget, names)]
        for generator, table in tables.items():
            problems += dead_rows(table, [target for target in targets if target.generator == generator], kernels)
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    kinds, archs = {entry.kernel for entry in entries}, {entry.target.arch for entry in entries}
    counts = f"{len(outcomes)} launches of {len(kinds)} kernels on {len(archs)} architectures"
    console.print(f"{counts}, {len(problems)} problems, {time.perf_counter() - start:.0f} s", highlight=False)
    return 1 if problems else 0


def _compiled(entries: Sequence[Entry], cache: FigureCache, jobs: int, console: Console) -> list[tuple[Entry, Outcome]]:
    """Every entry with its outcome; what is equal is compiled once."""
    fingerprints: dict[int, str] = {}
    wanted: dict[str, Specialised] = {}
    for number, entry in enumerate(entries):
        if isinstance(entry.specialised, Specialised):
            fingerprints[number] = entry.specialised.fingerprint()
            wanted[fingerprints[number]] = entry.specialised
    columns = (TextColumn("compiling"), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Refreshed by hand: a thread of its own would be forked along.
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(wanted))

        def built(fingerprint: str) -> None:
            launch = wanted[fingerprint]
            progress.update(task, advance=1, description=f"{launch.gpu.arch} {launch.function}", refresh=True)

        outcomes = build(wanted, cache, jobs, built)
    return [
        (entry, outcomes[fingerprints[number]] if number in fingerprints else Failure(str(entry.specialised)))
        for number, entry in enumerate(entries)
    ]


def _targets(asked: Sequence[str]) -> list[Target]:
    here = generators()
    for arch in asked:
        if arch not in TARGETS:
            raise ValueError(f"There is no target {arch!r}; there are {', '.join(TARGETS)}.")
        if TARGETS[arch].generator not in here:
            raise ValueError(f"This Triton ({triton.__version__}) does not compile for {arch}; for {', '.join(here)}.")
    return [target for target in TARGETS.values() if target.generator in here and target.arch in (asked or TARGETS)]


def _kernels(asked: Sequence[str]) -> list[Kernel]:
    known = {kernel.name: kernel for kernel in CATALOG}
    for name in asked:
        if name not in known:
            raise ValueError(f"There is no kernel {name!r}; there are {', '.join(known)}.")
    return [known[name] for name in asked or known]


def _tables(given: Sequence[str], targets: Sequence[Target]) -> dict[str, WatchedTable]:
    paths: dict[str, Traversable | Path] = dict(vendor_tables())
    for each in given:
        generator, _, path = each.partition("=")
        paths[generator] = Path(path)
    wanted = dict.fromkeys(target.generator for target in targets)
    missing = [generator for generator in wanted if generator not in paths]
    if missing:
        raise ValueError(
            f"No tuning table for {', '.join(missing)}: install the vendor's package, or give --tuning GENERATOR=FILE."
        )
    return {generator: WatchedTable(TuningTable.read(paths[generator], tunables()).rows) for generator in wanted}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m octavo_torch.kernels.ahead_of_time",
        description="Compile every kernel for every architecture and hold it against its budget.",
    )
    parser.add_argument("--target", nargs="+", default=[], metavar="ARCH", help=f"of {', '.join(TARGETS)}; all")
    parser.add_argument("--kernel", nargs="+", default=[], metavar="NAME", help="all")
    parser.add_argument("--quick", action="store_true", help=f"a launch in {QUICK}, others for each architecture")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at once")
    parser.add_argument("--write-budgets", action="store_true", help="what is taken now becomes the budget")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FOLDER", help="where budgets lie")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table of all figures")
    parser.add_argument(
        "--tuning", nargs="+", default=[], metavar="GENERATOR=FILE", help="in place of the installed vendors' tables"
    )
    parser.add_argument("--cache", type=Path, default=_cache(), metavar="FOLDER", help="figures of earlier runs")
    return parser


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "octavo" / "ahead-of-time"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
