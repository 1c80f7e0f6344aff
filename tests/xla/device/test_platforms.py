"""Which platform is taken where JAX_PLATFORMS names some."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_xla import platforms, probing
from octavo_xla.platforms import Platform, default_platform


@pytest.fixture
def only_cpu_and_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {Platform.CPU: ("", ""), Platform.TPU: ("", ""), Platform.GPU: ("There is no GPU.", "")}
    monkeypatch.setattr(platforms, "_MISSING", {platform: lambda said=said: said for platform, said in here.items()})


@pytest.mark.parametrize(
    ("named", "taken"),
    [("", "tpu"), ("cpu", "cpu"), ("cpu,tpu", "cpu"), ("cuda, cpu", "cpu"), ("rocm", "gpu"), ("nonsense", "tpu")],
)
@pytest.mark.usefixtures("only_cpu_and_tpu")
def test_the_first_platform_that_is_named_and_here_is_taken(
    monkeypatch: pytest.MonkeyPatch, named: str, taken: str
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", named)
    assert default_platform().value == taken


@pytest.mark.usefixtures("only_cpu_and_tpu")
def test_a_platform_that_is_named_and_not_here_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    found = probing.probe()
    assert (found.available, found.reason) == (False, "JAX_PLATFORMS asks for gpu. There is no GPU.")
    assert found.remedy == "unset JAX_PLATFORMS"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any devices."""
    for folder in ("dev/vfio", "pci/0000:00:04.0"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(platforms, "_DEV", tmp_path / "dev")
    monkeypatch.setattr(platforms, "_PCI", tmp_path / "pci")
    monkeypatch.setattr(platforms, "find_spec", lambda name: name)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, False),
        ({"dev/accel0": ""}, True),
        ({"dev/vfio/0": "", "pci/0000:00:04.0/vendor": "0x1ae0\n"}, True),
        ({"dev/vfio/12": "", "pci/0000:00:04.0/vendor": "0x10de\n"}, False),  # a GPU for a guest
        ({"pci/0000:00:04.0/vendor": "0x1ae0\n"}, False),
    ],
)
def test_a_tpu_is_a_device_of_its_maker(machine: Path, files: dict[str, str], found: bool) -> None:
    for name, content in files.items():
        (machine / name).write_text(content)
    assert (platforms.missing(Platform.TPU)[0] == "") is found


def test_a_driver_that_is_not_installed_is_said_with_its_command(
    monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    (machine / "dev" / "accel0").write_text("")
    monkeypatch.setattr(platforms, "find_spec", lambda name: None)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert "not installed (pip install 'octavo-xla[tpu]')." in probing.probe().reason


@pytest.mark.usefixtures("only_cpu_and_tpu")
def test_kernels_of_every_platform_here_are_offered_whichever_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("cpu", "tpu"):
        monkeypatch.setenv("JAX_PLATFORMS", named)
        assert all(kernel.available for kernel in probing.probe().kernels)
