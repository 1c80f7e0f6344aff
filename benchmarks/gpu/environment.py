"""What this checkout needs to run on a machine where it is not installed and nothing can be installed.

The machine has Python, torch, triton and transformers. The packages of the checkout are run from where they lie; what
they require and the machine lacks is unpacked from the wheels that `make gpu-bundle` collected; and each package of the
checkout gets the small folder of metadata by which plugins are found. All of it is one folder in front of PYTHONPATH.
"""

from __future__ import annotations

import os
import shutil
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "build" / "gpu-bundle"

PROJECTS = (
    "core", "server", "conformance", "backends/torch", "backends/cpu", "backends/cuda", "backends/rocm", "backends/xpu",
)  # fmt: skip
"""The packages of the checkout that a check runs."""

_UNNEEDED = {"pyzmq", "starlette", "uvicorn", "prometheus-client"}  # what only a running server needs


class MissingPackageError(Exception):
    """A package that is neither on the machine nor in the bundle."""


def make_environment(site: Path, bundle: Path = BUNDLE) -> dict[str, str]:
    """The environment for the processes of a check; `site` is made anew.

    Raises MissingPackageError, naming every package that is missing and the command that collects them.
    """
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    projects = {directory: _project(directory) for directory in PROJECTS}
    names = {canonicalize_name(project["name"]) for project in projects.values()}
    wanted = [
        Requirement(text)
        for project in projects.values()
        for text in project.get("dependencies", ())
        if canonicalize_name(Requirement(text).name) not in names | _UNNEEDED
    ]
    for wheel in wheels_for(wanted, bundle):
        _unpack(wheel, site)
    for project in projects.values():
        if _installed(project["name"]) is None:
            _describe(project, site)
    paths = [str(site), *(str(ROOT / directory) for directory in PROJECTS), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def wheels_for(wanted: Iterable[Requirement], bundle: Path) -> list[Path]:
    """The bundle's wheels that this machine needs to have `wanted`, those that the wheels themselves need included.

    Raises MissingPackageError.
    """
    wheels = _wheels(bundle)
    chosen: dict[str, Path] = {}
    lacking: list[str] = []
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name in chosen or _satisfied(requirement):
            continue
        wheel = wheels.get(name)
        if wheel is None or parse_wheel_filename(wheel.name)[1] not in requirement.specifier:
            lacking.append(str(requirement))
            continue
        chosen[name] = wheel
        waiting += _requirements(wheel)
    if lacking:
        raise MissingPackageError(
            f"This machine lacks {', '.join(sorted(set(lacking)))}; run `make gpu-bundle` where packages can be "
            "fetched, and take build/gpu-bundle along."
        )
    return list(chosen.values())


def _satisfied(requirement: Requirement) -> bool:
    found = _installed(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _wheels(bundle: Path) -> dict[str, Path]:
    """The bundle's wheels that this interpreter can use, by name."""
    usable = set(sys_tags())
    found = {}
    for path in sorted(bundle.glob("*.whl")):
        name, _, _, tags = parse_wheel_filename(path.name)
        if tags & usable:
            found[str(name)] = path
    return found


def _requirements(wheel: Path) -> Iterator[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(path).decode())
    for text in metadata.get_all("Requires-Dist") or ():
        yield Requirement(text)


def _unpack(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def _project(directory: str) -> Mapping[str, Any]:
    """The [project] table of a package of the checkout."""
    with (ROOT / directory / "pyproject.toml").open("rb") as stream:
        project: Mapping[str, Any] = tomllib.load(stream)["project"]
    return project


def _describe(project: Mapping[str, Any], site: Path) -> None:
    """The metadata folder of a package that is not installed, with its entry points."""
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (folder / "METADATA").write_text(head, encoding="utf-8")
    lines = []
    for group, points in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{name} = {to}" for name, to in points.items()), ""]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
