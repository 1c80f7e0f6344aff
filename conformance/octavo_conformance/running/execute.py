"""One case, here and now."""

from __future__ import annotations

import time
import warnings

from octavo_conformance.case import Case
from octavo_conformance.raised import raised, said, shortened
from octavo_conformance.verdict import Outcome, Verdict
from octavo_conformance.workbench import CaseFailure, NotClaimed, Workbench


def execute(case: Case, bench: Workbench) -> Outcome:
    """Run a case on a device that is open. What the case raises becomes its verdict."""
    reason = case.needs.missing(bench.capabilities)
    if reason:
        return Outcome(case.id, Verdict.UNSUPPORTED, reason)
    mine = bench.for_case(case.id)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a case overflows on purpose, and libraries warn of it
            case.run(mine)
    except NotClaimed as missing:
        return Outcome(case.id, Verdict.UNSUPPORTED, shortened(said(missing)), seconds=time.perf_counter() - start)
    except CaseFailure as failure:
        reason = shortened(said(failure))
    except Exception as error:
        reason = f"It {raised(error)}"
    return Outcome(
        case=case.id,
        verdict=Verdict.FAILED if reason else Verdict.PASSED,
        reason=reason,
        nmse=mine.nmse,
        tolerance=mine.tolerance,
        seconds=time.perf_counter() - start,
        figures=mine.figures,
    )
