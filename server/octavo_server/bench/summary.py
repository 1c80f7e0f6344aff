"""Medians and what lies around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Of `count` measurements; in their unit. p95 by linear interpolation."""

    count: int
    median: float
    p95: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("There is nothing to summarise.")
        ordered = sorted(values)
        return cls(len(ordered), quantile(ordered, 0.5), quantile(ordered, 0.95), ordered[0], ordered[-1])

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (self.largest - self.smallest) / self.median if self.median else 0.0

    def as_data(self) -> dict[str, float]:
        return {**asdict(self), "spread": self.spread}

    def scaled(self, factor: float) -> Summary:
        return Summary(self.count, *(factor * value for value in (self.median, self.p95, self.smallest, self.largest)))


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of ascending values lie, interpolated."""
    position = (len(ordered) - 1) * part
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
