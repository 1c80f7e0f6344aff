"""Discovery over real entry points: distributions made on the spot, found as pip-installed ones are."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from octavo.backend import (
    ApiVersionError,
    BackendError,
    BackendUnavailableError,
    DeviceConfig,
    DeviceOutOfMemoryError,
    UnknownBackendError,
    UnsupportedError,
)
from octavo.backend.discovery import discover, open_device

PLUGIN = """
    from octavo.backend import Backend, DeviceConfig, Kernel, Probe, hookimpl
    from octavo.reference.device import ReferenceDevice

    class Opened(ReferenceDevice):
        def __init__(self, config):
            super().__init__(DeviceConfig())
            self.config = config

    def probe():
        {probe}

    def open_it(config):
        {open}

    @hookimpl
    def octavo_backends():
        return [Backend({name!r}, {version}, "a test's own", probe, open_it, priority={priority})]
"""
HERE = 'return Probe(True, "it is here")'

Install = Callable[..., None]


@pytest.fixture
def install_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with one module and one entry point on sys.path."""

    def install(name: str, source: str, package: str = "", metadata: bool = True) -> None:
        package = package or f"octavo-{name}"
        folder = tmp_path / package
        module = f"test_plugin_{package.replace('-', '_')}"
        info = folder / f"{package.replace('-', '_')}-2.5.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(dedent(source))
        (info / "entry_points.txt").write_text(f"[octavo.backends]\n{name} = {module}\n")
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.5\n")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return install


@pytest.fixture
def install(install_source: Install) -> Install:
    """As `install_source`, with a plugin of one backend."""

    def with_backend(
        name: str,
        version: int = 1,
        probe: str = HERE,
        priority: int = 500,
        open: str = "return Opened(config)",
        package: str = "",
    ) -> None:
        source = PLUGIN.format(name=name, version=version, probe=probe, priority=priority, open=open)
        install_source(name, source, package)

    return with_backend


def failure_of(name: str):
    (failure,) = [failure for failure in discover().failures if failure.name == name]
    return failure


def test_the_reference_is_found_through_its_entry_point_like_any_other():
    found = discover().named("reference")
    assert found.package == "octavo-core"
    assert found.probe().available
    opened = open_device(DeviceConfig("reference"))
    assert opened.device.info.backend == "reference"
    assert opened.reason == "Backend 'reference': asked for by name."


def test_a_plugin_is_found_with_its_package_and_version(install):
    install("mine")
    found = discover().named("mine")
    assert (found.package, found.version, found.backend.api_version) == ("octavo-mine", "2.5", 1)
    assert open_device(DeviceConfig("mine", index=3)).device.config.index == 3


def test_a_plugin_that_fails_to_import_is_kept_with_its_traceback_and_hides_nobody(install, install_source):
    install("good")
    install_source("broken", "import a_driver_that_is_missing")
    failure = failure_of("broken")
    assert failure.package == "octavo-broken"
    assert failure.reason == "ModuleNotFoundError: No module named 'a_driver_that_is_missing'"
    assert "import a_driver_that_is_missing" in failure.traceback
    assert discover().named("good").name == "good"
    with pytest.raises(BackendUnavailableError, match="'broken' of package octavo-broken cannot be used: ModuleNot"):
        open_device(DeviceConfig("broken"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("x = 1", "BackendError: Plugin 'odd' has no function octavo_backends marked with"),
        (
            "from octavo.backend import hookimpl\n@hookimpl\ndef octavo_backends(): return ['odd']",
            "BackendError: octavo_backends of plugin 'odd' returned a str where a Backend is expected.",
        ),
        ("from octavo.backend import hookimpl\n@hookimpl\ndef octavo_backends(): return 1", "BackendError: "),
        (
            "from octavo.backend import hookimpl\n@hookimpl\ndef octavo_backends(): 1 / 0",
            "ZeroDivisionError: ",
        ),
        (
            "from octavo.backend import hookimpl\n@hookimpl\ndef octavo_backends(): return []\n"
            "@hookimpl\ndef octavo_typo(): pass",
            "PluginValidationError: ",
        ),
    ],
)
def test_a_plugin_that_answers_wrongly_is_kept_with_a_reason_and_its_traceback(install_source, source, reason):
    install_source("odd", source)
    failure = failure_of("odd")
    assert failure.reason.startswith(reason)
    assert "Traceback" in failure.traceback


def test_a_distribution_without_metadata_does_not_stop_discovery(install_source):
    source = PLUGIN.format(name="bare", version=1, probe=HERE, priority=1, open="return config")
    install_source("bare", source, metadata=False)
    assert discover().named("bare").package == "unknown"


def test_a_plugin_for_a_later_version_is_refused_with_a_sentence(install):
    install("future", version=9)
    failure = failure_of("future")
    assert failure.traceback == ""
    assert failure.reason == (
        "it was written for version 9 of the backend contract, and this octavo-core speaks version 1: "
        "upgrade octavo-core."
    )
    with pytest.raises(ApiVersionError, match=r"'future' of package octavo-future .* written for version 9"):
        open_device(DeviceConfig("future"))


def test_a_later_version_is_told_even_when_the_plugin_uses_its_new_hooks(install_source):
    source = PLUGIN.format(name="future", version=9, probe=HERE, priority=1, open="return config")
    install_source("future", dedent(source) + "\n@hookimpl\ndef octavo_of_version_9(): pass\n")
    assert "written for version 9" in failure_of("future").reason


def test_a_plugin_for_a_version_too_old_is_told_to_be_upgraded(install):
    install("ancient", version=0)
    assert failure_of("ancient").reason.endswith("upgrade the plugin.")


def test_the_second_backend_of_one_name_is_refused_and_names_the_first(install):
    install("twin", package="octavo-b-twin")
    install("twin", package="octavo-a-twin")
    kept = discover().named("twin").package
    failure = failure_of("twin")
    assert {kept, failure.package} == {"octavo-a-twin", "octavo-b-twin"}
    assert failure.reason.startswith(f"package {kept} offers a backend of the same name")


def test_a_backend_cannot_take_the_name_auto(install):
    install("auto")
    assert "cannot be named 'auto'" in failure_of("auto").reason


def test_auto_takes_the_highest_priority_that_is_available_and_says_whom_it_passed_over(install, install_source):
    install("slow", priority=900)
    install("fast", priority=901)
    install("absent", priority=999, probe='return Probe(False, "no such card.")')
    install_source("broken", "raise RuntimeError('bad wheel')")
    opened = open_device(DeviceConfig())
    assert opened.package == "octavo-fast"
    assert opened.reason.startswith("Backend 'fast': the best one available (absent: no such card; ")
    assert "broken: RuntimeError: bad wheel" in opened.reason


def test_a_probe_that_raises_is_an_unavailable_backend_that_says_why(install):
    install("moody", priority=999, probe='raise OSError("driver 5 is too old")')
    install("steady", priority=998)
    probe = discover().named("moody").probe()
    assert not probe.available
    assert probe.reason == "Its probe failed: OSError: driver 5 is too old"
    assert "moody: Its probe failed: OSError: driver 5 is too old" in open_device(DeviceConfig()).reason


def test_a_backend_asked_for_by_name_is_never_replaced_by_another(install):
    install("card", probe='return Probe(False, "no card found.", remedy="pip install card-driver")')
    with pytest.raises(BackendUnavailableError) as caught:
        open_device(DeviceConfig("card"))
    assert str(caught.value) == (
        "Backend 'card' is not available here: no card found. To install what is missing: pip install card-driver"
    )


def test_an_unknown_backend_lists_those_that_are_installed(install):
    install("mine")
    with pytest.raises(
        UnknownBackendError, match=r"no backend .nope.; installed are: .*mine.*reference.*install the one"
    ):
        open_device(DeviceConfig("nope"))


KERNELS = """return Probe(True, "here", kernels=(
            Kernel("own", True, "built in", selected=True),
            Kernel("vendor", False, "pip install vendor-kernels brings it"),
        ))"""


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        (
            "vendor",
            "Kernel 'vendor' of backend 'mine' is not available here: pip install vendor-kernels brings it",
        ),
        ("other", "Backend 'mine' has no kernel 'other'; it has: own, vendor."),
    ],
)
def test_a_kernel_that_is_not_available_is_refused_before_the_device_is_opened(install, kernel, sentence):
    install("mine", probe=KERNELS, open="raise AssertionError('opened')")
    with pytest.raises(BackendUnavailableError) as caught:
        open_device(DeviceConfig("mine", kernel=kernel))
    assert str(caught.value) == sentence


def test_an_available_kernel_is_handed_to_the_backend(install):
    install("mine", probe=KERNELS)
    assert open_device(DeviceConfig("mine", kernel="own")).device.config.kernel == "own"


def test_what_open_raises_arrives_as_one_sentence_and_the_backends_own_errors_as_they_are(install):
    install("brittle", open="raise RuntimeError('out of queues')")
    with pytest.raises(
        BackendUnavailableError, match="'brittle' failed to open its device: RuntimeError: out of queues"
    ):
        open_device(DeviceConfig("brittle"))
    install("small", open="from octavo.backend import DeviceOutOfMemoryError as E; raise E('9 bytes')")
    with pytest.raises(DeviceOutOfMemoryError, match="9 bytes"):
        open_device(DeviceConfig("small"))


def test_nothing_available_says_why_for_each():
    from octavo.backend.discovery import Discovery

    with pytest.raises(BackendError, match=r"No backend is available here \(no plugin is installed\)"):
        open_device(DeviceConfig(), Discovery((), ()))


@pytest.mark.parametrize(
    ("probe", "reason"),
    [("return None", "returned NoneType where a Probe is expected"), ("raise SystemExit(3)", "SystemExit: 3")],
)
def test_a_probe_that_answers_wrongly_does_not_hide_the_other_backends(install, probe, reason):
    install("odd", probe=probe)
    install("steady", priority=998)
    found = {backend.name: backend.probe() for backend in discover().backends}
    assert reason in found["odd"].reason
    assert found["steady"].available
    assert open_device(DeviceConfig()).device.config.backend == "auto"


def test_a_package_cannot_take_the_name_of_anothers_backend(install, install_source):
    thief = PLUGIN.format(name="mine", version=1, probe=HERE, priority=1, open="return Opened(config)")
    install_source("acme", thief)
    install("mine")
    found = discover()
    assert found.named("mine").package == "octavo-mine"
    assert [(failure.name, failure.package) for failure in found.failures] == [("mine", "octavo-acme")]


@pytest.mark.parametrize(
    ("open", "sentence"),
    [
        ("return 1", "opened a int where a Device is expected"),
        ("device = Opened(config); del device.info; return device", "has no info"),
    ],
)
def test_a_device_that_is_none_is_refused_with_a_sentence(install, open, sentence):
    install("hollow", open=open)
    with pytest.raises(BackendError, match=sentence):
        open_device(DeviceConfig("hollow"))


def test_auto_never_takes_a_backend_that_is_there_to_be_asked_for_by_name(install):
    from octavo.backend.discovery import Discovery

    install("oracle", priority=0)
    only = Discovery((discover().named("oracle"),), ())
    with pytest.raises(BackendUnavailableError, match="No backend is available here"):
        open_device(DeviceConfig(), only)


def test_more_shards_than_the_device_claims_are_refused(install):
    install("single", probe=HERE, open="return Opened(config)")
    with pytest.raises(UnsupportedError, match="tensor_parallel_size is 2; backend 'single' does at most 1"):
        open_device(DeviceConfig("single", tensor_parallel_size=2))
    assert open_device(DeviceConfig("single", tensor_parallel_size=1)).device
