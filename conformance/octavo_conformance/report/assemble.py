"""A report from what a run knows: the device, what was asked for, and the outcomes."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from octavo.backend import Capabilities, DeviceInfo
from octavo.host import package_versions, processor_name
from octavo_conformance import SUITE_VERSION
from octavo_conformance.expectations import Expectations
from octavo_conformance.report.document import (
    SCHEMA,
    Backend,
    Claims,
    DeviceRecord,
    ExpectedFailureRecord,
    Host,
    OverrideRecord,
    Report,
    Selection,
    result_of,
)
from octavo_conformance.running.wire import Assignment, Opened
from octavo_conformance.tolerances import Tolerances
from octavo_conformance.verdict import Outcome

# Whose versions decide over results; the backend's own package is added.
_PACKAGES = (
    "octavo-core", "octavo-conformance", "octavo-torch", "numpy", "ml-dtypes", "torch", "triton", "jax", "jaxlib",
)  # fmt: skip


def make_report(
    *,
    opened: Opened,
    assignment: Assignment,
    selection: Selection,
    expectations: Expectations,
    outcomes: Iterable[Outcome],
    date: datetime | None = None,
) -> Report:
    """The report of a run.

    opened: the device, or why there was none. assignment: what was asked to be opened. outcomes: one for every case
    that the selection stands for, in the order of the suite. date: now, where it is not given.
    """
    info = opened.info
    backend = Backend(
        name=assignment.backend,
        package=opened.package,
        version=opened.version,
        kernel="" if info is None else info.kernel,
        requested_kernel=assignment.kernel,
        options={key: _without_home(value) for key, value in assignment.options.items()},
    )
    return Report(
        schema=SCHEMA,
        suite_version=SUITE_VERSION,
        api_version=opened.api_version,
        octavo_version=version("octavo-core"),
        date=(date or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0),
        backend=backend,
        device=None if info is None else _device(info),
        capabilities=None if info is None else claims_of(info.capabilities),
        host=host(opened.package),
        selection=selection,
        overrides=tuple(
            OverrideRecord(one.op, one.dtype, one.nmse, Tolerances().of(one.op, one.dtype), one.reason)
            for one in expectations.overrides
        ),
        expected_failures=tuple(ExpectedFailureRecord(one.case, one.reason) for one in expectations.failures),
        results=tuple(result_of(outcome) for outcome in outcomes),
    )


def _device(info: DeviceInfo) -> DeviceRecord:
    return DeviceRecord(info.name, info.arch, info.driver, tuple(map(_without_home, info.notes)))


def _without_home(text: str) -> str:
    """The text with ~ in place of the path that names its user: others read reports."""
    home = Path.home()
    return re.sub(rf"(?<![\w.-]){re.escape(str(home))}(?=/|\s|$)", "~", text) if home != home.parent else text


def claims_of(capabilities: Capabilities) -> Claims:
    """Capabilities, field by field."""
    return Claims(**{name: getattr(capabilities, name) for name in Claims.__struct_fields__})


def host(package: str = "") -> Host:
    """This machine, without its name. package: the backend's, whose version belongs to those that matter."""
    return Host(
        os=" ".join([platform.system(), *re.findall(r"^\d+\.\d+", platform.release())]),
        machine=platform.machine(),
        processor=processor_name(),
        python=platform.python_version(),
        packages=package_versions((*_PACKAGES, *([package] if package and package not in _PACKAGES else []))),
    )
