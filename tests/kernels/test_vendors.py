"""The three vendors: what makes a card a device, and what is refused with a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.backend import BackendUnavailableError, DeviceConfig, DType, UnsupportedError
from octavo_cuda.plugin import open_cuda
from octavo_rocm.plugin import open_rocm
from octavo_torch.gpu.probe import Card
from octavo_torch.gpu.vendor import choose_card
from octavo_xpu.plugin import open_xpu

OPENERS = {"cuda": (open_cuda, "sm_90"), "rocm": (open_rocm, "gfx942"), "xpu": (open_xpu, "pvc")}


@pytest.mark.parametrize("backend", OPENERS)
def test_a_vendor_is_a_device_file_and_a_tuning_table(backend: str) -> None:
    opener, arch = OPENERS[backend]
    device = opener(DeviceConfig())
    assert (device.info.backend, device.info.arch, device.info.kernel) == (backend, arch, "triton")
    assert any("interpreter" in note for note in device.info.notes)
    claimed = device.info.capabilities
    assert DType.FLOAT8_E4M3 in claimed.kv_dtypes
    assert claimed.graph_capture
    assert claimed.asynchronous
    device.close()


@pytest.mark.parametrize("backend", OPENERS)
def test_a_kernel_that_there_is_not_is_refused_with_those_there_are(backend: str) -> None:
    with pytest.raises(BackendUnavailableError, match="no kernel 'cutlass'; it has: triton, torch"):
        OPENERS[backend][0](DeviceConfig(kernel="cutlass"))


def test_the_index_chooses_among_the_cards() -> None:
    cards = [Card("NVIDIA H200", "sm_90"), Card("Tesla T4", "sm_75", lacks="Tesla T4 is too old.")]
    assert choose_card("cuda", cards, 0) is cards[0]
    with pytest.raises(BackendUnavailableError, match="Tesla T4 is too old"):
        choose_card("cuda", cards, 1)
    with pytest.raises(UnsupportedError, match="cards 0 to 1; 2 was asked for"):
        choose_card("cuda", cards, 2)
    with pytest.raises(UnsupportedError, match="one card, of index 0; 1 was asked for"):
        choose_card("cuda", cards[:1], 1)


def _see(monkeypatch: pytest.MonkeyPatch, kind: str, **card: Any) -> None:
    """Have torch see one card."""
    module = getattr(torch, kind)
    monkeypatch.setattr(module, "init", lambda: None)
    monkeypatch.setattr(module, "device_count", lambda: 1)
    monkeypatch.setattr(module, "get_device_properties", lambda index: SimpleNamespace(**card))


def test_what_an_nvidia_card_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo_cuda.device import properties

    figures = {"multi_processor_count": 132, "shared_memory_per_block": 48 << 10}
    _see(monkeypatch, "cuda", name="NVIDIA H200", major=9, minor=0, shared_memory_per_block_optin=227 << 10, **figures)
    found = properties(0)
    assert (found.name, found.arch, found.processors, found.shared_memory) == ("NVIDIA H200", "sm_90", 132, 227 << 10)
    _see(monkeypatch, "cuda", name="Tesla T4", major=7, minor=5, **figures)
    with pytest.raises(BackendUnavailableError, match=r"compute capability 7\.5; the kernels need 8\.0"):
        properties(0)


def test_what_an_amd_card_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo_rocm.device import properties

    figures = {"multi_processor_count": 304, "shared_memory_per_block": 64 << 10, "warp_size": 64}
    _see(monkeypatch, "cuda", name="AMD Instinct MI300X", gcnArchName="gfx942:sramecc+:xnack-", **figures)
    found = properties(0)
    assert (found.arch, found.processors, found.shared_memory, found.warp_size) == ("gfx942", 304, 64 << 10, 64)
    _see(monkeypatch, "cuda", name="AMD Radeon VII", gcnArchName="gfx906", **figures)
    with pytest.raises(BackendUnavailableError, match="is a gfx906; the kernels run on gfx90a"):
        properties(0)


def test_what_an_intel_card_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo_xpu.device import properties

    figures = {"driver_version": "1.6.33578", "gpu_subslice_count": 128, "sub_group_sizes": [16, 32]}
    _see(monkeypatch, "xpu", name="Intel(R) Data Center GPU Max 1550", local_mem_size=128 << 10, **figures)
    found = properties(0)
    assert (found.arch, found.processors, found.shared_memory, found.warp_size) == ("pvc", 128, 128 << 10, 32)
    _see(monkeypatch, "xpu", name="Intel(R) Arc(TM) B580 Graphics", **figures)
    assert properties(0).arch == "bmg"
