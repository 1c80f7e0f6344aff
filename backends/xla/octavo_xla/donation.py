"""Programs that take the KV cache over, and what is left of it where they fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from octavo.backend import Array, DeviceLostError


@contextmanager
def taken_over(what: str, arrays: Iterable[Array]) -> Iterator[None]:
    """Around the call of a program that `arrays` are donated to. what: the program, to begin a sentence with.

    Raises DeviceLostError where the call fails and has taken an array: nobody has its contents any more.
    """
    try:
        yield
    except Exception as error:
        if any(array.is_deleted() for array in arrays):
            raise DeviceLostError(f"{what} failed after it had taken the KV cache: {error}") from error
        raise
