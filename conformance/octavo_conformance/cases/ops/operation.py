"""How an operation is put to the test: called as the engine calls it, and held to the rules that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

from octavo.backend import Array, DType
from octavo_conformance.case import Case, Needs
from octavo_conformance.raised import raised
from octavo_conformance.workbench import CaseFailure, Workbench

HostArray = NDArray[Any]
Spec = TypeVar("Spec")

EXAMPLES = 20
"""Generated examples of one case."""


SAMPLER_OPS = ("probability_units", "top_k", "scatter_add")
"""What the sampler calls, in float32 whatever a model computes in: every device needs them in it, claimed or not."""


def op_case(
    op: str,
    dtype: DType,
    variant: str,
    run: Callable[[Workbench], None],
    *,
    quick: bool = False,
    needs: Needs | None = None,
) -> Case:
    """A case of level `ops`. needs: the dtype alone where nothing is said."""
    if needs is None:
        needs = Needs() if op in SAMPLER_OPS and dtype is DType.FLOAT32 else Needs(dtypes=(dtype,))
    return Case(f"ops/{op}/{dtype.value}/{variant}", run, needs, dtype, quick)


def opposite(argument: HostArray) -> HostArray:
    """Other values that are as valid: the rows in reverse order, floats with the other sign."""
    reverse = argument[::-1].copy()
    return reverse if argument.dtype.kind in "iu" else -reverse


def apply(
    bench: Workbench,
    op: str,
    run: Callable[..., tuple[Array, ...]],
    arguments: Sequence[HostArray],
    inputs: str,
    padding: int = 0,
    other: Callable[[HostArray], HostArray] = opposite,
) -> tuple[HostArray, ...]:
    """The results of an operation on host arrays, downloaded.

    run: takes the uploaded arguments, returns the results; weights are its own. inputs: describes the arguments, for
    messages. padding: how many rows at the end of each argument and result are padding; they are not returned. other:
    makes another argument of one, as valid. Raises CaseFailure where the operation modified an argument, where a second
    call gave other bits, or where a result changed once the operation had run again on other arguments.
    """
    device = bench.device
    mine = [device.upload(argument.copy()) for argument in arguments]
    with told(op, inputs):
        first = run(*mine)
        results = _download(bench, first)
    again = _download(bench, run(*mine))
    _require_same(results, again, f"{op}: a second call with the same arguments ({inputs}) changed result")
    _download(bench, run(*(device.upload(other(argument)) for argument in arguments)))
    later = _download(bench, first)
    _require_same(results, later, f"{op}: a call with other arguments, after this one ({inputs}), changed result")
    left = _download(bench, mine)
    _require_same(arguments, left, f"{op}: the operation ({inputs}) changed its argument")
    return tuple(_without_padding(bench, op, result, len(arguments[0]), padding, inputs) for result in results)


@contextmanager
def told(op: str, inputs: str) -> Iterator[None]:
    """What an operation raises, as a CaseFailure that names the operation and describes its arguments."""
    try:
        yield
    except CaseFailure:
        raise
    except Exception as error:
        raise CaseFailure(f"{op} {raised(error)} ({inputs}).") from error


def generated(bench: Workbench, examples: SearchStrategy[Spec], check: Callable[[Spec, Workbench], None]) -> None:
    """`check` on generated specs, the same ones in every run. Raises the CaseFailure of the example that failed.

    Nothing is shrunk: the specs are small, and a device may take long to compile for each new shape.
    """
    failures: list[CaseFailure] = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(examples)
    def run(spec: Spec) -> None:
        bench.rng = np.random.default_rng(list(repr(spec).encode()))  # the numbers depend on the spec alone
        try:
            check(spec, bench)
        except CaseFailure as failure:
            failures.append(failure)
            raise

    try:
        run()
    except Exception:
        if failures:  # a result that is wrong only sometimes has hypothesis complain of something else
            raise failures[0] from None
        raise


def numbers(bench: Workbench, shape: Sequence[int], dtype: DType, scale: float = 1.0, shift: float = 0.0) -> HostArray:
    """Normally distributed numbers, rounded to the dtype."""
    return (bench.rng.standard_normal(tuple(shape)) * scale + shift).astype(dtype.numpy)


def with_padding(rows: HostArray, padding: int) -> HostArray:
    """The rows, then `padding` rows of NaN (of 0 for integers, as the runner pads them)."""
    filler = 0 if rows.dtype.kind in "iu" else np.nan
    return np.concatenate([rows, np.full((padding, *rows.shape[1:]), filler, rows.dtype)])


def _download(bench: Workbench, results: Sequence[Array]) -> tuple[HostArray, ...]:
    # A copy: what a device downloads may be a view of its own memory, and would change with it.
    return tuple(np.array(bench.device.download(result), copy=True) for result in results)


def _without_padding(bench: Workbench, op: str, result: HostArray, rows: int, padding: int, inputs: str) -> HostArray:
    if padding == 0:
        return result
    found = len(result)
    bench.require(found == rows, f"{op}: the result has {found} rows, expected {rows} with the padding ({inputs}).")
    return result[: rows - padding]


def _require_same(expected: Sequence[HostArray], found: Sequence[HostArray], what_changed: str) -> None:
    """Raises CaseFailure unless the arrays hold the same bits; a NaN equals every NaN."""
    for index, (before, after) in enumerate(zip(expected, found, strict=True)):
        if before.shape != after.shape or before.dtype != after.dtype:
            forms = f"{before.dtype.name} {before.shape} became {after.dtype.name} {after.shape}"
            raise CaseFailure(f"{what_changed} {index}: {forms}.")
        bits = np.dtype(f"u{before.dtype.itemsize}")
        other_bits = np.ascontiguousarray(before).view(bits) != np.ascontiguousarray(after).view(bits)
        different = other_bits & ~((before != before) & (after != after))
        if bool(np.any(different)):
            where = tuple(int(at) for at in np.argwhere(different)[0])
            raise CaseFailure(
                f"{what_changed} {index}: {int(np.sum(different))} of {before.size} entries, the first at "
                f"{list(where)} from {before[where]!s} to {after[where]!s}."
            )
