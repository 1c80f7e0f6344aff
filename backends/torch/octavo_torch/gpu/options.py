"""The settings that are the accelerators' own: `backend_options` of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from octavo.backend import UnsupportedError


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """graphs: decode steps are recorded as graphs. graph_memory: part of the card's memory that they may take.
    step_seconds: after which a card that does not finish a step is given up.
    """

    graphs: bool = True
    graph_memory: float = 0.03
    step_seconds: float = 300.0

    @classmethod
    def parse(cls, options: Mapping[str, str], backend: str) -> GpuOptions:
        """Raises UnsupportedError for an option or a value that there is not."""
        values: dict[str, bool | float] = {}
        for name, text in options.items():
            if name not in _READERS:
                raise UnsupportedError(f"Backend {backend!r} has no option {name!r}; it has: {', '.join(_READERS)}.")
            expected, read = _READERS[name]
            value = read(text)
            if value is None:
                raise UnsupportedError(f"Option {name} of backend {backend!r} is {expected}, and is {text!r}.")
            values[name] = value
        return cls(**values)  # type: ignore[arg-type]  # each reader gives what its field holds


def _switch(text: str) -> bool | None:
    return {"on": True, "off": False}.get(text)


def _number(least: float, largest: float) -> Callable[[str], float | None]:
    def read(text: str) -> float | None:
        try:
            value = float(text)
        except ValueError:
            return None
        return value if least <= value <= largest else None

    return read


_READERS: Mapping[str, tuple[str, Callable[[str], bool | float | None]]] = {
    "graphs": ("on or off", _switch),
    "graph_memory": ("a part of the card's memory, from 0 to 0.5", _number(0.0, 0.5)),
    "step_seconds": ("a number of seconds, from 1 to 86400", _number(1.0, 86400.0)),
}
