"""Tensor parallelism: the collectives of one shard, and of two that meet."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import IO, Any

import numpy as np

from octavo.backend import DeviceConfig
from octavo_conformance.case import Case, Needs
from octavo_conformance.running import shard
from octavo_conformance.workbench import CaseFailure, Workbench

_SHARDS = shard.SHARDS

_ALONE = 10.0
"""Seconds after which a first shard that says nothing is waiting for the second. A mesh of devices needs no second."""

_FAREWELL = 30.0
"""Seconds that the others have where one shard fails: a mesh that opens slowly goes on though no second is taken."""

_LIMIT = 120.0


def cases() -> Iterator[Case]:
    yield Case("contract/collectives/shards=1", _one_shard, quick=True)
    needs = Needs(shards=_SHARDS)
    yield Case(f"contract/collectives/shards={_SHARDS}", _two_shards, needs, quick=True, limit=_LIMIT + 30.0)


def _one_shard(bench: Workbench) -> None:
    """The suite's own device is opened as a single shard, whose collectives change nothing."""
    collectives = bench.device.collectives
    bench.require(
        (collectives.rank, collectives.size) == (0, 1),
        f"A device opened with tensor_parallel_size = 1 has rank {collectives.rank} of size {collectives.size}; it is "
        "rank 0 of size 1.",
    )
    host = bench.rng.standard_normal((3, 5)).astype(bench.dtype.numpy)
    array = bench.device.upload(host.copy())
    bench.check_equal("all_reduce", bench.device.download(collectives.all_reduce(array)), host, "a single shard")
    for axis in (0, 1):
        came = bench.device.download(collectives.all_gather(array, axis))
        bench.check_equal("all_gather", came, host, f"a single shard, axis {axis}")


def _two_shards(bench: Workbench) -> None:
    """One step that all shards run, be they processes or the devices of a mesh. On a mesh the suite's process is alone:
    whoever shards there, a program for each device (size 2) or the compiler (size 1), the results are those of whole
    arrays.
    """
    config = replace(bench.config, backend=bench.device.info.backend, tensor_parallel_size=_SHARDS)
    with _Shards(bench, config) as shards:
        answers = shards.answers()
    ranks = [(answer["rank"], answer["size"]) for answer in answers]
    if answers[0]["is_mesh"]:
        bench.require(
            ranks in ([(0, 1)], [(0, _SHARDS)]),
            f"A mesh of {_SHARDS} devices says that it is (rank, size) {ranks[0]}; it is rank 0 of size {_SHARDS}, or "
            "of size 1 where its compiler shards the arrays.",
        )
    else:
        bench.require(
            len(answers) == _SHARDS, f"A first shard of {_SHARDS} did not wait for the second, and is no mesh."
        )
        bench.require(
            ranks == [(rank, _SHARDS) for rank in range(_SHARDS)],
            f"Shards opened as rank 0 and 1 of {_SHARDS} say that they are (rank, size) {ranks}.",
        )
    size = answers[0]["size"]
    for rank, answer in enumerate(answers):
        for key, (what, right) in _expected(size).items():
            _same(bench, f"{what}, on {'a mesh' if answer['is_mesh'] else f'shard {rank}'}", answer[key], right)
    bench.require(
        len({answer["inexact_sum"] for answer in answers}) == 1,
        "all_reduce: the shards have sums of different bits; it is the same on each, or they drift apart.",
    )
    parts = [part.astype(bench.dtype.numpy) for part in _parts("fractions", size)]
    summed = np.frombuffer(bytes.fromhex(answers[0]["inexact_sum"]), bench.dtype.numpy).reshape(parts[0].shape)
    wide = np.sum([part.astype(np.float64) for part in parts], axis=0)
    bench.measure("all_reduce", bench.dtype, summed, wide, f"{_SHARDS} shards")


def _expected(size: int) -> Mapping[str, tuple[str, np.ndarray]]:
    """What each output is, in words, and its values, on each of `size` shards."""
    given = _parts("contribution", size)
    x, column, bias, row = (_parts(name, 1)[0] for name in ("x", "column", "bias", "row"))
    fused = np.concatenate(_parts("fused", size))  # a shard's rows of both parts, then the next one's
    return {
        "sum": ("all_reduce", np.sum(given, axis=0)),
        "rows": ("all_gather over axis 0", np.concatenate(given, 0)),
        "columns": ("all_gather over axis 1", np.concatenate(given, 1)),
        "column_parallel": ("linear by output columns, gathered", x @ column.T + bias),
        "fused": ("linear of two fused matrices by output columns, gathered", x @ fused.T),
        "row_parallel": ("linear by inputs, summed", x @ row.T),
    }


def _parts(name: str, size: int) -> list[np.ndarray]:
    """Each shard's part of a source."""
    return [shard.sources()[name].shard(rank, size).read() for rank in range(size)]


def _same(bench: Workbench, what: str, got: Any, expected: np.ndarray) -> None:
    came = np.asarray(got, np.float32)
    wrong = came.shape != expected.shape or bool(np.any(came != expected))
    bench.require(
        not wrong,
        f"{what}: the result is wrong, where small integers leave nothing to round. It is {list(came.shape)} and "
        f"begins with {came.ravel()[:4].tolist()}; {list(expected.shape)} that begins with "
        f"{expected.ravel()[:4].tolist()} was expected.",
    )


@dataclass(frozen=True, slots=True)
class _Process:
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]


class _Shards:
    """The processes of the shards, which end with the `with` statement whatever happens."""

    def __init__(self, bench: Workbench, config: DeviceConfig) -> None:
        self._request = {
            "path": sys.path,
            "dtype": bench.dtype.value,
            "kv_dtype": bench.kv_dtype.value,
            "head_size": bench.head_size,
            "block_size": bench.block_size,
        }
        self._config = replace(config, rendezvous=f"127.0.0.1:{_free_port()}")
        self._processes: list[_Process] = []
        self._files = ExitStack()

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for each in self._processes:
            if each.process.poll() is None:
                each.process.kill()
            each.process.wait()
        self._files.close()

    def answers(self) -> Sequence[Mapping[str, Any]]:
        """What each shard answered; the first alone where it is a mesh. Raises CaseFailure."""
        self._start(0)
        self._wait(_ALONE)
        if self._processes[0].process.poll() is None:
            for rank in range(1, _SHARDS):
                self._start(rank)
            self._wait(_LIMIT)
        if self._processes[0].process.poll() == 0:
            first = self._answer(0)
            if first["is_mesh"] or len(self._processes) == 1:
                return [first]
        codes = [each.process.poll() for each in self._processes]
        failed = [
            f"shard {rank} ended with {code}: {self._last_words(rank)}" for rank, code in enumerate(codes) if code
        ]
        hanging = [
            f"shard {rank} still runs: {self._last_words(rank)}" for rank, code in enumerate(codes) if code is None
        ]
        if failed or hanging:
            raise CaseFailure(
                f"Shards that were opened with rendezvous {self._config.rendezvous!r} did not come to the end of a few "
                f"collectives: {'; '.join(failed + hanging)}."
            )
        return [self._answer(rank) for rank in range(_SHARDS)]

    def _wait(self, seconds: float) -> None:
        """Until all have ended, or so long. Where one fails, the others have `_FAREWELL` seconds."""
        deadline, failed = time.monotonic() + seconds, False
        while time.monotonic() < deadline:
            codes = [each.process.poll() for each in self._processes]
            if all(code is not None for code in codes):
                return
            if any(codes) and not failed:
                deadline, failed = min(deadline, time.monotonic() + _FAREWELL), True
            time.sleep(0.02)

    def _start(self, rank: int) -> None:
        config = {**asdict(replace(self._config, options={}, rank=rank)), "options": dict(self._config.options)}
        request = json.dumps({**self._request, "config": config})
        command = [sys.executable, "-m", "octavo_conformance.running.shard", request]
        output = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # `_files` closes it
        errors = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._processes.append(_Process(subprocess.Popen(command, stdout=output, stderr=errors), output, errors))

    def _answer(self, rank: int) -> Mapping[str, Any]:
        output = self._processes[rank].output
        output.seek(0)
        answer: Mapping[str, Any] = json.loads(output.read())
        return answer

    def _last_words(self, rank: int) -> str:
        errors = self._processes[rank].errors
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
