"""What the runtime asks of torch.cuda and torch.xpu, in which order, on a module that writes it down."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from octavo_torch.gpu.runtime import Properties
from octavo_torch.gpu.torch_runtime import TorchRuntime

CARD = Properties("card", "sm_90", "", 132, 227 << 10, 32)
GIB = 1 << 30


class Module:
    """torch.cuda, as far as the runtime uses it. taken: what each recording takes of the card."""

    def __init__(self, taken: int = 0, reserved: int = 0) -> None:
        self.calls: list[str] = []
        self.free, self.held, self.used = 100 * GIB, 5 * GIB, 3 * GIB
        self.current = 0
        module = self

        class Graph:
            def capture_begin(self, **options: Any) -> None:
                module.calls.append(f"begin {sorted(options)}")

            def capture_end(self) -> None:
                module.calls.append("end")
                if module.calls[-2] == "broken":
                    raise RuntimeError("operation failed due to a previous error during capture")
                module.free -= taken
                module.held += reserved

            def replay(self) -> None:
                module.calls.append("replay")

        self.CUDAGraph = self.XPUGraph = Graph

    def current_device(self) -> int:
        return self.current

    def set_device(self, index: int) -> None:
        self.calls.append(f"device {index}")
        self.current = index

    def mem_get_info(self, device: Any) -> tuple[int, int]:
        return self.free, 141 * GIB

    def memory_reserved(self, device: Any) -> int:
        return self.held

    def memory_allocated(self, device: Any) -> int:
        return self.used

    def empty_cache(self) -> None:
        self.calls.append("trim")

    def graph_pool_handle(self) -> str:
        self.calls.append("pool")
        return "pool"

    def Stream(self, device: Any) -> Stream:  # noqa: N802  # torch's name
        return Stream(self, "side")

    def current_stream(self) -> Stream:
        return Stream(self, "main")

    @contextmanager
    def stream(self, stream: Stream) -> Any:
        self.calls.append(f"on {stream.name}")
        try:
            yield
        finally:
            self.calls.append(f"off {stream.name}")


class Stream:
    def __init__(self, module: Module, name: str) -> None:
        self._module, self.name = module, name

    def wait_stream(self, other: Stream) -> None:
        self._module.calls.append(f"{self.name} after {other.name}")


def test_what_the_allocator_holds_for_nobody_counts_as_free() -> None:
    memory = TorchRuntime("cuda", 0, CARD, Module()).memory()
    assert (memory.free, memory.total) == (102 * GIB, 141 * GIB)
    assert not memory.shared_with_host


def test_a_recording_happens_beside_the_stream_that_works_and_in_order_with_it() -> None:
    module = Module()
    runtime = TorchRuntime("cuda", 0, CARD, module)
    runtime.record(lambda: module.calls.append("work")).replay()
    begin = "begin ['capture_error_mode', 'pool']"
    assert module.calls == [
        *("trim", "pool", "side after main", "on side", begin, "work", "end", "off side", "main after side", "replay")
    ]
    module.calls.clear()
    runtime.record(lambda: None)
    assert "pool" not in module.calls  # the graphs of a card share one


def test_intels_recordings_take_no_error_mode() -> None:
    module = Module()
    TorchRuntime("xpu", 0, CARD, module).record(lambda: None)
    assert "begin ['pool']" in module.calls


def test_a_recording_that_fails_is_ended_and_its_own_error_is_raised() -> None:
    module = Module()

    def work() -> None:
        module.calls.append("broken")
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        TorchRuntime("cuda", 0, CARD, module).record(work)
    assert module.calls[-2:] == ["end", "off side"]


@pytest.mark.parametrize(
    ("taken", "reserved", "said"),
    [
        (50 << 20, 40 << 20, 50 << 20),
        (20 * GIB, 40 << 20, (40 << 20) + (64 << 20)),  # another process took the rest
        (-GIB, 40 << 20, 0),  # another process ended
    ],
)
def test_a_graphs_memory_is_not_what_other_processes_do_meanwhile(taken: int, reserved: int, said: int) -> None:
    runtime = TorchRuntime("cuda", 0, CARD, Module(taken, reserved))
    assert runtime.record(lambda: None).memory == said


def test_a_torch_without_graphs_for_the_card_records_none() -> None:
    module = Module()
    del module.CUDAGraph, module.XPUGraph
    assert not TorchRuntime("xpu", 0, CARD, module).records


def test_the_card_is_made_current_only_where_it_is_not() -> None:
    module = Module()
    runtime = TorchRuntime("cuda", 1, CARD, module)
    runtime.activate()
    runtime.activate()
    assert module.calls == ["device 1"]
    assert runtime.device == torch.device("cuda", 1)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_torch_has_all_that_is_asked_of_it(kind: str) -> None:
    module = getattr(torch, kind)
    asked = ("Event", "Stream", "current_device", "current_stream", "empty_cache", "graph_pool_handle", "mem_get_info")
    for name in (*asked, "memory_allocated", "memory_reserved", "set_device", "stream"):
        assert callable(getattr(module, name)), name
