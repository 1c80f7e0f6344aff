"""What is not there is refused with one sentence, at once, and named with what would fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from octavo.backend import BackendError, DeviceConfig, DType, KVLayout, UnsupportedError
from octavo.backend.discovery import discover, open_device
from octavo_xla.options import XlaOptions

OFF = {"cache": "off"}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"options": {"platform": "tpu"}}, "There is no TPU on this machine."),
        ({"options": {"platform": "gpu"}}, "There is no GPU driver on this machine."),
        ({"options": {"platform": "abacus"}}, "is auto, cpu, gpu, tpu, and is 'abacus'"),
        ({"options": {"speed": "11"}}, "has no option 'speed'; it has: platform, host_devices, cache"),
        ({"options": {"host_devices": "0"}}, "from 1 to 64, and is '0'"),
        ({"options": {"platform": "tpu", "host_devices": "2"}}, "is for platform cpu; platform is tpu."),
        ({"options": {"host_devices": "8", **OFF}}, "brought up as 2 devices in this process"),
        ({"options": {"cache": "gs://bucket/x"}}, "is a folder of this machine, or off for none, and is 'gs://bucket/x'."),
        ({"options": {"cache": "~nosuchuser/x"}}, "'~nosuchuser/x' has a home directory that there is not."),
        ({"options": OFF, "threads": 100_000}, "threads = 100000 was asked for; this machine of "),
        ({"options": OFF, "threads": 0}, "threads = 0 was asked for; this machine of "),
        ({"options": OFF, "tensor_parallel_size": 3}, "A mesh of 3 devices was asked for"),
        ({"options": OFF, "index": 1, "tensor_parallel_size": 2}, "1 is there, which is the largest"),
        ({"options": OFF, "kernel": "pallas"}, "Pallas kernels need a TPU"),
        ({"options": OFF, "kernel": "abacus"}, "it has: pallas, xla, pallas-interpreted"),
    ],
)  # fmt: skip
def test_what_is_not_here_is_refused_with_a_sentence(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(BackendError) as refused:
        open_device(DeviceConfig(backend="xla", **config))  # type: ignore[arg-type]
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_listing_the_backends_imports_no_jax() -> None:
    program = (
        "import sys; from octavo.backend.discovery import discover; "
        "found = discover().named('xla'); assert found.probe().available; "
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_probe_says_which_operations_the_platform_takes() -> None:
    kernels = {kernel.name: kernel for kernel in discover().named("xla").probe().kernels}
    assert kernels["xla"].selected
    assert not kernels["pallas"].available
    assert "TPU" in kernels["pallas"].reason


@pytest.mark.parametrize("off", ["off", "OFF", "Off"])
def test_no_cache_is_asked_for_in_any_case(off: str) -> None:
    assert XlaOptions.parse({"cache": off}).cache is None


def test_a_cache_that_cannot_be_laid_out_is_refused_before_weights_are_loaded() -> None:
    config = DeviceConfig(backend="xla", kernel="pallas-interpreted", options=OFF)
    device = open_device(config).device
    with pytest.raises(UnsupportedError, match="takes blocks of at least 32 tokens with kernel 'pallas-interpreted'"):
        device.kv_block_bytes(KVLayout(2, 2, 64, 16, DType.INT8))
    assert device.kv_block_bytes(KVLayout(2, 2, 64, 32, DType.INT8)) > 0


def test_a_cache_that_cannot_be_written_is_a_note_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    device = open_device(DeviceConfig(backend="xla", options={"cache": str(tmp_path / "file")})).device
    assert any("Compiled programs are not kept" in note for note in device.info.notes)
