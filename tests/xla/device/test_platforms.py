"""Which platform is taken where JAX_PLATFORMS names some."""

from __future__ import annotations

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
