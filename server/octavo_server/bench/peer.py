"""transformers as a peer, in a process of its own.

Octavo's process never holds a framework that only the peer needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from octavo.models.resolve import FileKind, ModelFiles
from octavo_server.bench.errors import BenchError
from octavo_server.bench.workload import Workload

_CHILD = "octavo_server.bench.static_batching"


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One pass of the peer over the workload."""

    seconds: float
    outputs: tuple[tuple[int, ...], ...]


class TransformersPeer:
    """A context manager around the child process; it loads and warms up on entry and is idle between runs.

    Messages are lines of JSON over its pipes. Raises BenchError when the child ends.
    """

    def __init__(self, files: ModelFiles, workload: Workload, threads: int) -> None:
        gguf = files.kind is FileKind.GGUF
        self._task = {
            "directory": str(files.path.parent if gguf else files.path),
            "gguf_file": files.path.name if gguf else None,
            "threads": threads,
            "requests": [
                {"prompt": list(request.prompt_token_ids), "output_tokens": request.output_tokens}
                for request in workload.requests
            ],
        }
        self._threads = threads
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> TransformersPeer:
        threads = str(self._threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self.facts = self._ask(self._task)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def run(self, batch_size: int) -> PeerRun:
        """All requests in their order, `batch_size` at a time.

        Each batch runs until its longest output is complete.
        """
        answer = self._ask({"batch_size": batch_size})
        return PeerRun(answer["seconds"], tuple(tuple(ids) for ids in answer["outputs"]))

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._child.stdin is None or self._child.stdout is None:
            raise RuntimeError("The peer's process was started without pipes.")
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines()
            raise BenchError(f"transformers could not be measured: {lines[-1] if lines else 'its process ended'}.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _close(self) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()
