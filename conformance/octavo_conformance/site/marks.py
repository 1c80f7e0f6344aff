"""How a verdict looks: a sign, a word and a class, so that colour never says it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo_conformance.case import Level
from octavo_conformance.verdict import Verdict

WHAT: Mapping[Level, str] = {
    Level.CONTRACT: "Discovery, probe, claims, arrays and memory: what a backend says of itself is true.",
    Level.OPS: "Every operation against a float64 oracle, on hostile caches and ragged batches.",
    Level.STEP: "Logits of whole tiny models of each family against transformers.",
    Level.ENGINE: "Generation: greedy parity, preemption, prefix cache, copy-on-write, a full pool.",
    Level.INVARIANCE: "The same tokens whatever happens around a request, and on every backend.",
    Level.PERFORMANCE: "Recorded, not judged.",
}
"""What each level looks at, in a sentence."""


@dataclass(frozen=True, slots=True)
class Mark:
    """sign: shown beside the word. kind: the class in the style sheet, and the word where there is little room.

    word, words: for one case and for several.
    """

    sign: str
    kind: str
    word: str
    words: str


_MARKS = {
    Verdict.FAILED: Mark("\N{BALLOT X}", "failed", "failed", "failed"),
    Verdict.EXPECTED_FAILURE: Mark(
        "\N{CIRCLE WITH LEFT HALF BLACK}", "expected", "expected failure", "expected failures"
    ),
    Verdict.PASSED: Mark("\N{CHECK MARK}", "passed", "passed", "passed"),
    Verdict.UNSUPPORTED: Mark("\N{EN DASH}", "unsupported", "unsupported", "unsupported"),
    Verdict.UNAVAILABLE: Mark("\N{WHITE CIRCLE}", "unavailable", "no device", "no device"),
}

ORDER = tuple(_MARKS)
"""The verdicts, what a reader looks for first in front."""


def mark(verdict: Verdict) -> Mark:
    """How a verdict looks."""
    return _MARKS[verdict]
