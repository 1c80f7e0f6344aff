"""What the shared device says and refuses, and how failures of a card reach the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo.backend import (
    Bucket,
    DeviceConfig,
    DeviceLostError,
    DeviceOutOfMemoryError,
    DType,
    KVLayout,
    MemoryInfo,
    UnsupportedError,
)


def failing(error: Exception) -> Callable[..., Any]:
    def step(weights: Any, kv: Any, inputs: Any) -> Any:
        raise error

    return step


EAGER = Bucket(0, 0, 0, 0, False)
LOST = [
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA driver error: device not ready",
    "CUDA error: unspecified launch failure",
    "HIP error: the operation cannot be performed in the present state",
    "CUDA error: device-side assert triggered",
    "UR error: UR_RESULT_ERROR_DEVICE_LOST",
    "Triton Error [CUDA]: an illegal memory access was encountered",
]
FULL = [
    "CUDA error: out of memory",
    "Triton Error [HIP]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "UR error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
]
HARMLESS = [
    "CUDA error: invalid configuration argument",
    "CUDA error: no kernel image is available for execution on the device",
    "shape '[3]' is invalid for input of size 4",
]


@pytest.mark.parametrize("text", LOST)
def test_a_lost_card_is_said_to_be_lost_in_one_sentence(run: Any, text: str) -> None:
    step = run.device.compile(failing(RuntimeError(text)), EAGER)
    with pytest.raises(DeviceLostError) as caught:
        step(run.weights, run.kv, run.device.stage(run.make_inputs(0, run.board)))
    assert text.partition("\n")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("Tried to allocate 2 GiB"), *map(RuntimeError, FULL)])
def test_a_step_that_does_not_fit_says_how_much_is_free(run: Any, runtime: Any, error: Exception) -> None:
    step = run.device.compile(failing(error), EAGER)
    with pytest.raises(DeviceOutOfMemoryError, match=f"{runtime.total:,} bytes are free"):
        step(run.weights, run.kv, run.device.stage(run.make_inputs(0, run.board)))


@pytest.mark.parametrize("text", HARMLESS)
def test_an_error_that_leaves_the_card_well_stays_what_it_is(run: Any, text: str) -> None:
    step = run.device.compile(failing(RuntimeError(text)), EAGER)
    with pytest.raises(RuntimeError, match=r"invalid|no kernel image") as caught:
        step(run.weights, run.kv, run.device.stage(run.make_inputs(0, run.board)))
    assert type(caught.value) is RuntimeError


def test_an_error_that_shows_only_when_the_result_is_asked_for_is_translated_there(
    run: Any, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, _ = run.launch(0)

    def passed(mark: Any) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(type(runtime.mark()), "passed", passed)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        run.device.download(outputs.sums)


def test_closing_a_lost_card_raises_nothing(device: Any, runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def trim() -> None:
        raise RuntimeError("CUDA error: unknown error")

    monkeypatch.setattr(runtime, "trim", trim)
    device.close()


def test_a_card_that_hangs_is_not_waited_for_once_more_when_it_is_closed(
    run: Any, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched = []
    monkeypatch.setattr(runtime, "trim", lambda: touched.append("trim"))
    step = run.device.compile(failing(DeviceLostError("The card does not finish.")), EAGER)
    with pytest.raises(DeviceLostError):
        step(run.weights, run.kv, run.device.stage(run.make_inputs(0, run.board)))
    run.device.close()
    assert touched == []


def test_a_card_whose_memory_others_hold_is_refused_in_one_sentence(
    open_device: Any, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory() -> MemoryInfo:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA to enable assertions.")

    monkeypatch.setattr(runtime, "memory", memory)
    with pytest.raises(DeviceOutOfMemoryError, match=r"^Opening .*another process may hold it\.$") as caught:
        open_device()
    assert "\n" not in str(caught.value)


def test_a_kv_cache_beyond_the_cards_memory_is_refused_with_both_figures(device: Any, runtime: Any) -> None:
    layout = KVLayout(2, 1, 8, 16, DType.FLOAT32)
    blocks = runtime.total // device.kv_block_bytes(layout) + 1
    with pytest.raises(DeviceOutOfMemoryError, match=rf"{blocks * 2048:,} bytes does not fit: {runtime.total:,}"):
        device.allocate_kv(layout, blocks)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (KVLayout(1, 1, 12, 16, DType.FLOAT32), "multiples of 8 up to 24"),
        (KVLayout(1, 1, 8, 16, DType.FLOAT8_E4M3), "float8_e4m3fn is not possible"),
        (KVLayout(1, 1, 8, 5, DType.FLOAT32), "blocks of 8, 16, 32, 64, 128"),
    ],
)
def test_a_layout_that_the_kernel_does_not_take_is_refused(device: Any, layout: KVLayout, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        device.allocate_kv(layout, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grafs": "on"}, "no option 'grafs'; it has: graphs, graph_memory, step_seconds"),
        ({"graphs": "yes"}, "on or off, and is 'yes'"),
        ({"graph_memory": "0.9"}, "from 0 to 0.5, and is '0.9'"),
        ({"step_seconds": "soon"}, "a number of seconds"),
    ],
)
def test_an_option_that_there_is_not_is_refused(open_device: Any, options: dict[str, str], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        open_device(**options)


def test_more_than_one_shard_is_refused(device: Any, runtime: Any) -> None:
    with pytest.raises(UnsupportedError, match="the largest that fits is 1"):
        type(device)("fake", runtime, device._kernels, DeviceConfig(tensor_parallel_size=2))


def test_memory_for_graphs_is_a_part_of_the_card(open_device: Any, runtime: Any) -> None:
    notes = open_device(graph_memory="0.25").info.notes
    assert any(f"{runtime.total // 4 >> 20:,} MiB" in note for note in notes)
    assert not open_device(graph_memory="0").info.capabilities.graph_capture


def test_claims_are_those_of_the_kernels(device: Any) -> None:
    claimed = device.info.capabilities
    assert claimed.asynchronous
    assert claimed.graph_capture
    assert np.dtype(claimed.dtypes[0].numpy).itemsize == 2  # where a checkpoint does not say: a card's natural choice
