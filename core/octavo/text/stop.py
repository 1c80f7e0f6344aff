"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Iterable


class StopChecker:
    """Finds the first stop string to be completed as text arrives, and holds back no more than may become
    one.

    The match does not depend on how the text is cut into pieces: the stop string that is complete first wins,
    the longest one where several end at the same character. Its text and what follows are dropped.
    """

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self._stops = tuple(sorted(stop, key=len, reverse=True))
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, active: bool = True) -> str:
        """Take in new text, give back what is safe to show.

        With active=False stop strings that end in this text pass as ordinary text (min_tokens is not
        reached). After a match everything is dropped.
        """
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        old, buffer = len(self._held), self._held + text
        if active and (match := self._first(buffer, old)) is not None:
            start, self.matched = match
            self._held = ""
            return buffer[:start]
        safe = len(buffer) - self._overlap(buffer)
        self._held = buffer[safe:]
        return buffer[:safe]

    def flush(self) -> str:
        """The text is over: give back what was held."""
        held, self._held = self._held, ""
        return held

    def _first(self, buffer: str, old: int) -> tuple[int, str] | None:
        """Start and stop string of the match that ends first, after the `old` characters that were searched
        before.
        """
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = buffer.find(stop, max(0, old - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else best[1:]

    def _overlap(self, buffer: str) -> int:
        """Length of the longest end of the buffer that is the beginning of a stop string."""
        for length in range(min(len(buffer), len(self._stops[0]) - 1), 0, -1):
            end = buffer[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return length
        return 0
