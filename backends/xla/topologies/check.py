"""The command: compile, judge, and write what was asked for."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .breaking import FAULTS
from .budget import Budget, judge, renewed, stale
from .build import Outcome, compile_all
from .cache import FigureCache, compiler
from .chips import CHIPS
from .models import MODELS
from .page import page
from .steps import Case, all_cases, quick_cases

BUDGETS = Path(__file__).parents[1] / "budgets"


def check(arguments: Sequence[str]) -> int:
    """Returns the exit code: 1 where something is wrong."""
    options = _parser().parse_args(arguments)
    if options.page and (options.quick or options.chip or options.model or options.fault):
        _parser().error("--page is of all steps: without --quick, --chip, --model and --break.")
    console = Console(stderr=True)
    started = time.perf_counter()
    chips = list(CHIPS.values())
    whole, quick = list(all_cases(chips)), list(quick_cases(chips))
    asked = [case for case in (quick if options.quick else whole) if _asked(case, options)]
    cases = [replace(case, fault=options.fault) for case in asked]
    outcomes = list(zip(cases, _compiled(cases, FigureCache(options.cache), options.jobs, console), strict=True))
    budgets = {name: Budget.read(options.budgets / f"{name}.toml") for name in CHIPS}
    if options.write_budgets:
        for name in dict.fromkeys(case.chip.name for case in cases):
            budgets[name] = renewed([each for each in outcomes if each[0].chip.name == name], budgets[name])
            budgets[name].write(options.budgets / f"{name}.toml")
    if options.page:
        options.page.write_text(page(outcomes, budgets), encoding="utf-8")
    problems = [
        f"{case.chip.name}: {case.name}: {problem}"
        for case, outcome in outcomes
        for problem in judge(case, outcome, budgets[case.chip.name])
    ]
    for name, budget in budgets.items():
        names = [case.name for case in (*whole, *quick) if case.chip.name == name]
        problems += [f"{name}: {line}" for line in stale(names, budget)]
        if budget.compiler != compiler():
            of = budget.compiler or "no compiler"
            console.print(f"{name}: budgets are of {of}: temporary bytes under {compiler()} are not judged.")
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    taken = time.perf_counter() - started
    console.print(f"{len(outcomes)} steps, {len(problems)} problems, {taken:.0f} s ({compiler()})", highlight=False)
    return 1 if problems else 0


def _asked(case: Case, options: argparse.Namespace) -> bool:
    models = [MODELS[name].like for name in options.model or MODELS]
    return case.chip.name in (options.chip or CHIPS) and case.model.like in models


def _compiled(cases: Sequence[Case], cache: FigureCache, jobs: int, console: Console) -> list[Outcome]:
    columns = (TextColumn("compiling"), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(cases))
        return compile_all(
            cases,
            cache,
            jobs,
            lambda case: progress.update(task, advance=1, description=f"{case.chip.name}: {case.name}"),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python backends/xla/topologies",
        description="Compile whole steps for TPUs that are not there, and hold them against their budgets.",
    )
    for option, names in (("--chip", CHIPS), ("--model", MODELS)):
        of = f"of {', '.join(names)}; all"
        parser.add_argument(option, nargs="+", default=[], choices=names, metavar="NAME", help=of)
    parser.add_argument("--quick", action="store_true", help="two layers of the models")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at once")
    parser.add_argument("--write-budgets", action="store_true", help="what is taken now becomes the budget")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FOLDER", help="where budgets lie")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table of all figures")
    parser.add_argument("--cache", type=Path, default=_cache(), metavar="FOLDER", help="figures of earlier runs")
    parser.add_argument("--break", dest="fault", choices=FAULTS, help="with a fault that this check has to find")
    return parser


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "octavo" / "topologies"
