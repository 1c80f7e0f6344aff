"""A card that is not there: CPU tensors, marks that pass when the test says so, graphs that record and replay, a memory
budget, and failures on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octavo.backend import (
    AttentionMetadata,
    Bucket,
    DeviceConfig,
    KVCache,
    KVLayout,
    MemoryInfo,
    Step,
    StepInputs,
)
from octavo.backend.dtype import DType
from octavo.backend.step import Feedback
from octavo.backend.tree import tree_map
from octavo_torch.gpu.device import GpuDevice
from octavo_torch.gpu.host_runtime import HostRuntime
from octavo_torch.gpu.kernel_choice import TorchKernels
from octavo_torch.kernels.target import Target

TARGET = Target("cuda", "sm_90", 32, 227 << 10, 132)


class FakeRuntime(HostRuntime):
    """held: marks do not pass until `finish`. graph_memory: bytes that each recording takes. fail: raised by the next
    recording.
    """

    def __init__(self, total: int = 1 << 30) -> None:
        super().__init__(TARGET)
        self.total = total
        self.held = False
        self.queued = self.done = self.looks = 0
        self.buffers: dict[int, int] = {}  # pinned ones: address -> size
        self.graph_memory = 0
        self.fail: Exception | None = None
        self.recorded = self.replayed = 0

    def memory(self) -> MemoryInfo:
        return MemoryInfo(free=self.total, total=self.total)

    def pinned(self, size: int) -> torch.Tensor:
        buffer = torch.empty(size, dtype=torch.uint8)
        self.buffers[buffer.data_ptr()] = size
        return buffer

    def mark(self) -> FakeMark:
        self.queued += 1
        return FakeMark(self, self.queued)

    def finish(self, until: int | None = None) -> None:
        """The card has done its work, up to a mark."""
        self.done = self.queued if until is None else until

    def record(self, work: Callable[[], None]) -> FakeGraph:
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        self.recorded += 1
        with Tape() as tape:
            work()
        return FakeGraph(self, tape)


class FakeMark:
    def __init__(self, runtime: FakeRuntime, number: int) -> None:
        self._runtime, self.number = runtime, number

    def passed(self) -> bool:
        self._runtime.looks += 1
        return not self._runtime.held or self._runtime.done >= self.number


class Tape(TorchDispatchMode):
    """Remembers operations with the memory they work on: what a graph is, and what Python around them is not in."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, made))
        return made

    def play(self) -> None:
        for function, args, kwargs, made in self.operations:
            for place, result in zip(tree_leaves(made), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != result.data_ptr():
                    place.copy_(result)


class FakeGraph:
    def __init__(self, runtime: FakeRuntime, tape: Tape) -> None:
        self._runtime, self._tape, self.memory = runtime, tape, runtime.graph_memory

    def replay(self) -> None:
        self._runtime.replayed += 1
        self._tape.play()


class Traffic(TorchDispatchMode):
    """Counts transfers between pinned buffers and the card, and what reads a value of the card in passing."""

    def __init__(self, runtime: FakeRuntime) -> None:
        super().__init__()
        self._runtime = runtime
        self.up = self.down = self.synchronisations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.copy_.default:
            self.down += self._pinned(args[0])
            self.up += self._pinned(args[1])
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.synchronisations += 1
        return function(*args, **(kwargs or {}))

    def _pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._runtime.buffers


class FakeKernels(TorchKernels):
    """torch's operations, with the claims of kernels that never look at the host."""

    name = "fake"

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = replace(self.capabilities, graph_capture=True, asynchronous=True, head_sizes=(8, 16, 24))


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def open_device(runtime: FakeRuntime) -> Callable[..., GpuDevice]:
    """Opens the card with these options."""
    return lambda **options: GpuDevice("fake", runtime, FakeKernels(), DeviceConfig(options=options))


@pytest.fixture
def device(open_device: Callable[..., GpuDevice]) -> Iterator[GpuDevice]:
    opened = open_device()
    yield opened
    opened.close()


@pytest.fixture
def traffic(runtime: FakeRuntime) -> Traffic:
    return Traffic(runtime)


@pytest.fixture
def run(device: GpuDevice) -> Run:
    """Steps of one bucket on the device."""
    return Run.start(device)


@pytest.fixture
def start() -> Callable[..., Run]:
    """Steps on a device of the test's own, or of a step or bucket of its own."""
    return Run.start


# ------------------------------------------------------------------------------------------------------------- steps

LANES = 4
LAYOUT = KVLayout(2, 1, 8, 16, DType.FLOAT32)


@dataclass(frozen=True)
class Outputs:
    sums: torch.Tensor  # f32 [rows]
    token_ids: torch.Tensor  # i32 [rows]
    board: torch.Tensor  # i32 [lanes]


def step(weights: torch.Tensor, kv: KVCache, inputs: StepInputs) -> tuple[Outputs, KVCache]:
    """Something of everything: reads all inputs and the cache, writes the cache in place, feeds the board back."""
    assert inputs.feedback is not None
    meta = inputs.attention
    kv[0].view(-1)[meta.slots.long()] = inputs.token_ids.float()
    sums = weights * (inputs.token_ids + meta.positions) + meta.block_tables.sum(1) + kv[0].view(-1)[: len(meta.slots)]
    tokens = (sums.int() + inputs.feedback.last_tokens.sum()).int()
    return Outputs(sums, tokens, inputs.feedback.last_tokens + tokens[:LANES]), kv


def make_inputs(seed: int, board: torch.Tensor, rows: int = 8, blocks: int = 8) -> StepInputs:
    rng = np.random.default_rng(seed)

    def ints(*shape: int) -> np.ndarray[Any, Any]:
        return rng.integers(0, 100, shape).astype(np.int32)

    slots = rng.permutation(64)[:rows].astype(np.int32)
    meta = AttentionMetadata(ints(rows), slots, ints(rows), ints(rows + 1), ints(rows), ints(rows, blocks), True)
    feedback = Feedback(board, ints(rows), ints(LANES))
    return StepInputs(
        ints(rows), ints(rows), meta, sampling={"temperature": rng.random(rows, np.float32)}, feedback=feedback
    )


def make_bucket(rows: int = 8, blocks: int = 8) -> Bucket:
    return Bucket(rows, rows, blocks, rows, decode_only=True)


@dataclass
class Run:
    """Steps on a device, and the same steps run plainly."""

    step = staticmethod(step)
    make_inputs = staticmethod(make_inputs)

    device: GpuDevice
    compiled: Step
    kv: KVCache
    plain_kv: KVCache
    board: torch.Tensor
    plain_board: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def start(cls, device: GpuDevice, bucket: Bucket | None = None, run_step: Step = step) -> Run:
        kv, plain = (device.allocate_kv(LAYOUT, 9) for _ in range(2))
        for layer in (*kv, *plain):
            layer.zero_()
        board = torch.zeros(LANES, dtype=torch.int32)
        compiled = device.compile(run_step, bucket or make_bucket())
        return cls(device, compiled, kv, plain, board, board.clone(), torch.tensor(3.0))

    def launch(self, seed: int, **shape: int) -> tuple[Outputs, Outputs]:
        """One more step: (as compiled, as it should be)."""
        inputs = make_inputs(seed, self.board, **shape)
        outputs, self.kv = self.compiled(self.weights, self.kv, self.device.stage(inputs))
        self.board = outputs.board
        right, self.plain_kv = step(
            self.weights, self.plain_kv, on_device(make_inputs(seed, self.plain_board, **shape))
        )
        self.plain_board = right.board
        return outputs, right

    def check(self, outputs: Outputs, right: Outputs) -> None:
        for name in ("sums", "token_ids", "board"):
            came = self.device.download(getattr(outputs, name))
            np.testing.assert_array_equal(came, getattr(right, name).numpy(), err_msg=name)
        for mine, plain in zip(self.kv, self.plain_kv, strict=True):
            assert torch.equal(mine, plain)


def on_device(inputs: StepInputs) -> StepInputs:
    return tree_map(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, inputs)
