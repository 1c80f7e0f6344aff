"""Numbers, times and names as a reader wants them."""

from __future__ import annotations

import math
import re
from datetime import datetime
from urllib.parse import quote

from markupsafe import Markup, escape

from octavo.backend import DType

_BREAK_AFTER = re.compile(r"(?<=[_/,=])(?=.)", re.DOTALL)
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def error(value: float) -> str:
    """An error figure: two digits, and an exponent without zeros in front."""
    if value == 0.0 or not math.isfinite(value) or 0.1 <= value < 1000:
        return f"{value:.3g}"
    return _short(f"{value:.1e}")


def tolerance(value: float) -> str:
    """A tolerance, as tables have it: 1e-11."""
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return _short(f"{mantissa.rstrip('0').rstrip('.')}e{exponent}")


def seconds(value: float) -> str:
    """A time: 12 ms, 1.2 s, 3 min 20 s."""
    if not math.isfinite(value):
        return f"{value:g}"
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60} s"


def percent(share: float) -> str:
    """A share of 1, rounded down: 100 % is all."""
    tenths = math.floor(share * 1000 + 1e-9)
    return f"{tenths // 10} %" if tenths % 10 == 0 else f"{tenths / 10:.1f} %"


def measured(name: str, value: float) -> str:
    """A figure of a performance case, by the unit that its name states."""
    if not math.isfinite(value):
        return f"{value:g}"
    if name == "bytes_per_second":
        return f"{_scaled(value)}B/s"
    if name == "flops_per_second":
        return f"{_scaled(value)}FLOP/s"
    if name == "seconds":
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    if name.startswith("of_"):
        return f"{100 * value:.3g} %"
    return f"{value:.4g}"


def heading(name: str) -> str:
    """The name of such a figure, in words."""
    return {
        "bytes_per_second": "bandwidth",
        "flops_per_second": "arithmetic",
        "seconds": "time",
    }.get(name, name.replace("_", " "))


def many(number: int, what: str, several: str = "") -> str:
    """A number and what it counts: 1 case, 1,204 cases."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def day(date: datetime) -> str:
    """21 November 2026."""
    return f"{date.day} {date:%B %Y}"


def minute(date: datetime) -> str:
    """21 November 2026, 06:14 UTC."""
    return f"{day(date)}, {date:%H:%M} UTC"


def claim(value: object) -> str:
    """A claimed capability in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(claim(one) for one in value) or "none"
    return value.value if isinstance(value, DType) else str(value)


def breakable(name: str) -> Markup:
    """A long name that may be broken after its signs, so that it fits a phone."""
    return Markup("<wbr>").join(escape(part) for part in _BREAK_AFTER.split(name))


def fragment(anchor: str) -> str:
    """An element's id as the part of an address behind #."""
    return quote(anchor, safe="/:=,+")


def _short(number: str) -> str:
    return re.sub(r"e([+-])0*(?=\d)", lambda found: "e" + found[1].replace("+", ""), number)


def _scaled(value: float) -> str:
    for size, unit in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "
