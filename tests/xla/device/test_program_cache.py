"""The programs on disk: a bad one is replaced, the others stay, and no trouble with them reaches a request."""

from __future__ import annotations

import errno
import logging
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octavo_xla import program_cache
from octavo_xla.compiling import Compilations
from octavo_xla.platforms import Platform
from octavo_xla.program_cache import ProgramCache

NAMES = ("one", "two", "three", "four")
Start = Callable[[], Compilations]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A start of an engine, over the same folder each time; programs that take no time are kept as well."""
    monkeypatch.setattr(program_cache, "_WORTH_READING", 0.0)
    return lambda: Compilations(ProgramCache(tmp_path, Platform.CPU, "some processor"))


def _compile(compilations: Compilations, *names: str) -> None:
    for name in names:

        def program(x: Any, power: int = len(name)) -> Any:
            return jnp.sin(x) ** power

        program.__name__ = name
        compiled = compilations.compile(name, jax.jit(program), [np.ones(3, np.float32)])
        np.testing.assert_allclose(compiled(np.ones(3, np.float32)), np.sin(1.0) ** len(name), rtol=1e-4)


def _entries(compilations: Compilations) -> dict[str, Path]:
    assert compilations.cache is not None
    return {path.name.split("-")[0].removeprefix("jit_"): path for path in compilations.cache.folder.glob("*-cache")}


@pytest.mark.parametrize("broken", ["truncated", "empty", "not a program"])
def test_a_program_that_cannot_be_read_is_replaced_and_the_others_are_read(
    broken: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    _compile(first, *NAMES)
    entry = _entries(first)["three"]
    content = entry.read_bytes()
    entry.write_bytes({"truncated": content[:-9], "empty": b"", "not a program": b"not a program"}[broken])
    second, third = start(), start()
    _compile(second, *NAMES)
    _compile(third, *NAMES)
    assert (second.read, third.read) == (3, 4)
    assert [record.message.split(" Error")[0] for record in caplog.records if record.levelno == logging.WARNING] == [
        f"A program kept in {entry.parent} could not be read and is compiled anew."
    ]


def test_a_program_that_another_process_is_writing_is_left_alone(start: Start) -> None:
    compilations = start()
    _compile(compilations, "one", "two")
    assert compilations.cache is not None
    complaint = "Error reading persistent compilation cache entry for 'jit_one': EOFError"
    compilations.cache.mend(complaint, since=time.time() - 60)
    assert set(_entries(compilations)) == {"one", "two"}
    compilations.cache.mend(complaint, since=time.time() + 60)
    assert set(_entries(compilations)) == {"two"}


def test_a_write_that_fails_leaves_the_others_and_is_the_last(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    first = start()
    _compile(first, "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # as on a full disk: the start of an entry fits
    try:
        _compile(first, "two", "three")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _compile(first, "four")
    assert set(_entries(first)) == {"one"}
    assert [record.message.split(":")[0] for record in caplog.records if record.levelno == logging.WARNING] == [
        "Compiled programs are kept no longer"
    ]
    second = start()
    _compile(second, *NAMES)
    assert second.read == 1
    assert set(_entries(second)) == set(NAMES)


def test_a_folder_in_the_place_of_a_program_fails_no_request(start: Start) -> None:
    first = start()
    _compile(first, "one")
    entry = _entries(first)["one"]
    entry.unlink()
    entry.mkdir()
    _compile(start(), "one", "two")
    assert set(_entries(first)) == {"one", "two"}


def test_a_cache_that_is_gone_fails_no_request(start: Start) -> None:
    compilations = start()
    _compile(compilations, "one")
    assert compilations.cache is not None
    _entries(compilations)["one"].unlink()
    compilations.cache.folder.rmdir()
    compilations.cache.folder.write_text("")
    _compile(compilations, "two", "three")
    assert compilations.count == 3


def test_a_cache_that_cannot_be_written_is_read(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    _compile(start(), "one")

    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(program_cache, "TemporaryFile", refuse)
    second = start()
    _compile(second, "one", "two")
    assert second.read == 1
    assert set(_entries(second)) == {"one"}
    assert second.cache is not None
    assert second.cache.note == (
        f"Compiled programs are not kept: those of {second.cache.folder} are read, and it cannot be written "
        "(Read-only file system)."
    )


def test_starts_at_the_same_time_find_that_they_can_write(start: Start) -> None:
    notes: set[str] = set()

    def often() -> None:
        for _ in range(200):
            cache = start().cache
            assert cache is not None
            notes.add(cache.note)

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [note.split(" in ")[0] for note in notes] == ["Compiled programs are kept"]


def test_what_else_uses_jax_in_the_process_keeps_its_own_cache(start: Start, tmp_path: Path) -> None:
    own = tmp_path / "of somebody else"
    settings = {"jax_compilation_cache_dir": str(own), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        jax.jit(lambda x: jnp.cos(x) + 1)(np.ones(3, np.float32))
        ours = start()
        _compile(ours, *NAMES)
        kept = len(list(own.glob("*-cache")))
        jax.jit(lambda x: jnp.cos(x) + 2)(np.ones(3, np.float32))
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        program_cache.compilation_cache.reset_cache()
    assert kept >= 1
    assert len(list(own.glob("*-cache"))) > kept
    assert set(_entries(ours)) == set(NAMES)
