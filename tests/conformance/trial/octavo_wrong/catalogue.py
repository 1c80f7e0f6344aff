"""All faults, in the order of the published table."""

from __future__ import annotations

from octavo_wrong import arrays, claims, conduct, experts, kv_cache, linear, reach, rows, sampling, scores, steps
from octavo_wrong.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *reach.faults(),
    *scores.faults(),
    *kv_cache.faults(),
    *rows.faults(),
    *sampling.faults(),
    *linear.faults(),
    *experts.faults(),
    *steps.faults(),
    *arrays.faults(),
    *claims.faults(),
    *conduct.faults(),
)
