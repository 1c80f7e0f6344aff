"""What the kernels and the engine are to reach on an H200-class card, and what was measured of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GENERATE, _CONTINUOUS = "transformers/generate/requests", "transformers/continuous/"

Measurements = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal. value: None where it was not measured; met: None likewise. note: what the value stands for."""

    name: str
    goal: str
    value: float | None
    met: bool | None
    note: str = ""


def goals(measurements: Measurements) -> list[Goal]:
    """Each goal with what was measured for it."""
    return [
        _least(
            "decode attention, share of copy bandwidth", 0.90, _shares(measurements, "decode/", "of_copy_bandwidth")
        ),
        _least("prefill attention, share of matrix rate", 0.60, _shares(measurements, "prefill/", "of_matrix_rate")),
        _most("batch 1, ms a token", 4.5, *_single(measurements)),
        _most("host time a step at 256 requests, ms", 1.0, *_host(measurements)),
        _most("device idle at 256 requests, share", 0.05, *_idle(measurements)),
        _above("throughput, times transformers' generate", 20.0, *_best(measurements, _GENERATE)),
        _above("time for the same requests, times less", 20.0, *_ratio(measurements, _GENERATE)),
        _above("the same, beside its continuous batching", 1.0, *_ratio(measurements, _CONTINUOUS)),
    ]


def _least(name: str, bound: float, shares: Mapping[str, float]) -> Goal:
    """The worst of several has to reach the bound."""
    if not shares:
        return Goal(name, f"at least {bound:g}", None, None)
    worst = min(shares, key=lambda one: shares[one])
    reached = sum(share >= bound for share in shares.values())
    where, best = worst.partition("/")[2], max(shares.values())
    note = f"the least, at {where}; {reached} of {len(shares)} sizes reach it, best {best:.2f}"
    return Goal(name, f"at least {bound:g}", shares[worst], shares[worst] >= bound, note)


def _most(name: str, bound: float, value: float | None, note: str = "") -> Goal:
    return Goal(name, f"under {bound:g}", value, None if value is None else value < bound, note)


def _above(name: str, bound: float, value: float | None, note: str = "") -> Goal:
    return Goal(name, f"over {bound:g}", value, None if value is None else value > bound, note)


def _shares(measurements: Measurements, prefix: str, figure: str) -> dict[str, float]:
    return {
        name: float(one["figures"][figure])
        for name, one in measurements.items()
        if name.startswith(prefix) and figure in one["figures"]
    }


def _single(measurements: Measurements) -> tuple[float | None, str]:
    seconds = _figures(measurements, "serving/single_stream").get("seconds_per_token")
    return (None if seconds is None else 1e3 * seconds), ""


def _host(measurements: Measurements) -> tuple[float | None, str]:
    figures = _figures(measurements, "serving/host_time/")
    if "host_seconds" not in figures:
        return None, ""
    step = 1e3 * figures["step_seconds"]["median"]
    return 1e3 * figures["host_seconds"]["median"], f"of a step of {step:.2f} ms with {figures['running']} requests"


def _idle(measurements: Measurements) -> tuple[float | None, str]:
    return _figures(measurements, "serving/host_time/").get("device_idle_share"), "by the profiler's record"


def _best(measurements: Measurements, prefix: str) -> tuple[float | None, str]:
    """Output tokens a second, the most that each side reached with any number of requests at a time."""
    own, peer = (_shares(measurements, start, "output_tokens_per_second") for start in ("serving/throughput/", prefix))
    if not own or not any(peer.values()):
        return None, ""
    (ours, most), (theirs, peers) = (max(side.items(), key=lambda one: one[1]) for side in (own, peer))
    note = f"{most:.0f} tokens/s at {ours.rpartition('/')[2]}, {peers:.0f} at {theirs.rpartition('/')[2]}"
    return most / peers, note


def _ratio(measurements: Measurements, prefix: str) -> tuple[float | None, str]:
    """The time of a peer over Octavo's, both until as many tokens of the same requests were there as the peer made."""
    best: tuple[float | None, str] = None, ""
    for name, one in measurements.items():
        peer = one["figures"]
        if not name.startswith(prefix) or not peer.get("output_tokens"):
            continue
        traffic = name.rpartition("/")[2].rpartition(",")[0]  # without the number of output tokens
        own = _figures(measurements, f"serving/throughput/{traffic}")
        seconds = _until(own.get("curve", []), peer["output_tokens"])
        if seconds is None:
            continue
        ratio = peer["seconds"] / seconds
        agree = sum(a == b for a, b in zip(own["first_tokens"], peer["first_tokens"], strict=False))
        note = (
            f"until {peer['output_tokens']} tokens of {traffic}: {peer['seconds']:.1f} s against {seconds:.1f} s; "
            f"first tokens agree for {agree} of {len(peer['first_tokens'])}"
        )
        if best[0] is None or ratio < best[0]:
            best = ratio, note
    return best


def _until(curve: list[list[float]], tokens: float) -> float | None:
    """Seconds after which a run had made so many tokens; None where it never had."""
    at = bisect_left([point[1] for point in curve], tokens)
    return curve[at][0] if at < len(curve) else None


def _figures(measurements: Measurements, prefix: str) -> Mapping[str, Any]:
    """The figures of the first measurement of that name, or of one that begins with it."""
    for name, one in measurements.items():
        if name.startswith(prefix) and one["figures"]:
            found: Mapping[str, Any] = one["figures"]
            return found
    return {}
