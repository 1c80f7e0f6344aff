"""What the device says of itself, and that it can be closed, opened again, and opened beside another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from octavo.backend import BackendError, Capabilities, Device, DeviceInfo, DType
from octavo_conformance.case import Case
from octavo_conformance.workbench import CaseFailure, Workbench

_COMPUTE = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


def cases() -> Iterator[Case]:
    yield Case("contract/info/form", _info, quick=True)
    yield Case("contract/capabilities/form", _capabilities, quick=True)
    yield Case("contract/capabilities/more_shards_are_refused", _more_shards_are_refused, quick=True)
    yield Case("contract/close/opens_again", _opens_again, quick=True)
    yield Case("contract/close/two_devices", _two_devices, quick=True)


def _info(bench: Workbench) -> None:
    info = bench.device.info
    bench.require(isinstance(info, DeviceInfo), f"Device.info is a {type(info).__name__}, not a DeviceInfo.")
    for name in ("backend", "name", "arch", "kernel"):
        value = getattr(info, name)
        bench.require(isinstance(value, str) and value, f"DeviceInfo.{name} is {value!r}; it is a text.")
    bench.require(isinstance(info.driver, str), f"DeviceInfo.driver is {info.driver!r}; it is a version, or empty.")
    bench.require(
        isinstance(info.notes, tuple) and all(isinstance(note, str) and note for note in info.notes),
        f"DeviceInfo.notes is {info.notes!r}; it is a tuple of sentences.",
    )
    asked = bench.config.backend
    bench.require(
        asked in ("auto", info.backend), f"Backend {asked!r} opened a device whose info names backend {info.backend!r}."
    )


def _capabilities(bench: Workbench) -> None:
    claimed = bench.capabilities
    bench.require(
        isinstance(claimed, Capabilities), f"DeviceInfo.capabilities is a {type(claimed).__name__}, not Capabilities."
    )
    _dtypes(bench, "dtypes", claimed.dtypes)
    _dtypes(bench, "kv_dtypes", claimed.kv_dtypes)
    floats = ", ".join(dtype.value for dtype in _COMPUTE)
    strange = [dtype.value for dtype in claimed.dtypes if dtype not in _COMPUTE]
    bench.require(not strange, f"Capabilities.dtypes claims {', '.join(strange)}; compute dtypes are {floats}.")
    bench.require(
        claimed.default_dtype is None or claimed.default_dtype in claimed.dtypes,
        f"Capabilities.default_dtype is {getattr(claimed.default_dtype, 'value', claimed.default_dtype)}, which is not "
        "among the dtypes that it claims; set it to one of them, or to None for the checkpoint's own.",
    )
    _sizes(bench, "block_sizes", claimed.block_sizes)
    _sizes(bench, "quantized_bits", claimed.quantized_bits)
    bench.require(claimed.block_sizes, "Capabilities.block_sizes is empty; the first entry is the preferred one.")
    if claimed.head_sizes is not None:
        _sizes(bench, "head_sizes", claimed.head_sizes)
        bench.require(claimed.head_sizes, "Capabilities.head_sizes is empty; None takes any head size.")
    for name in ("static_shapes", "graph_capture", "asynchronous"):
        value = getattr(claimed, name)
        bench.require(isinstance(value, bool), f"Capabilities.{name} is {value!r}; it is True or False.")
    most = claimed.max_tensor_parallel
    bench.require(
        _is_integer(most) and most >= 1, f"Capabilities.max_tensor_parallel is {most!r}; it is an integer, 1 at least."
    )


def _more_shards_are_refused(bench: Workbench) -> None:
    """What opens as one shard of more than it can be computes with a part of the weights, or with all of them twice."""
    most = bench.capabilities.max_tensor_parallel
    asked = most + 1
    try:
        device = bench.open(replace(bench.config, tensor_parallel_size=asked, rank=0, rendezvous="127.0.0.1:1"))
    except BackendError:
        return
    size = device.collectives.size
    device.close()
    raise CaseFailure(
        f"tensor_parallel_size = {asked} was asked for, max_tensor_parallel is {most}, and a device of {size} "
        f"shard{'s' if size > 1 else ''} opened: it is refused with an UnsupportedError."
    )


def _opens_again(bench: Workbench) -> None:
    for _ in range(2):
        device = bench.open()
        _answers(bench, device, "opened anew")
        device.close()
    _answers(bench, bench.device, "that stayed open while another was closed")


def _two_devices(bench: Workbench) -> None:
    """A server loads a second model before it lets the first one go."""
    first, second = bench.open(), bench.open()
    _answers(bench, first, "the first of two")
    _answers(bench, second, "the second of two")
    first.close()
    _answers(bench, second, "whose neighbour was closed")
    second.close()


def _answers(bench: Workbench, device: Device, which: str) -> None:
    """A small round trip, through an operation."""
    host = bench.rng.standard_normal((4, 8)).astype(bench.dtype.numpy)
    array = device.upload(host.copy())
    values, _ = device.ops.top_k(array, 8)
    bench.check_equal(
        f"top_k on a device {which}", device.download(values), np.sort(host, -1)[:, ::-1], "x [4, 8], k 8"
    )


def _dtypes(bench: Workbench, name: str, values: Sequence[DType]) -> None:
    bench.require(
        isinstance(values, tuple) and values and all(isinstance(value, DType) for value in values),
        f"Capabilities.{name} is {values!r}; it is a tuple of DType with at least one entry.",
    )
    bench.require(len(set(values)) == len(values), f"Capabilities.{name} claims a dtype twice: {values!r}.")


def _sizes(bench: Workbench, name: str, values: Sequence[int]) -> None:
    bench.require(
        isinstance(values, tuple) and all(_is_integer(value) and value > 0 for value in values),
        f"Capabilities.{name} is {values!r}; it is a tuple of positive integers.",
    )
    bench.require(len(set(values)) == len(values), f"Capabilities.{name} claims a number twice: {values!r}.")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
