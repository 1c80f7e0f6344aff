"""`octavo backends`"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import click

from octavo.backend.discovery import Discovery, FailedPlugin, FoundBackend, discover
from octavo.backend.hooks import Probe


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def backends(as_json: bool) -> None:
    """List every backend that is installed, what it can run here, and why one cannot."""
    discovery = discover()
    click.echo(json.dumps(_data(discovery), indent=2) if as_json else "\n".join(_lines(discovery)))


def _data(discovery: Discovery) -> dict[str, object]:
    return {
        "backends": [
            {
                "name": found.name,
                "package": found.package,
                "version": found.version,
                "api_version": found.backend.api_version,
                "summary": found.backend.summary,
                "priority": found.backend.priority,
                **asdict(found.probe()),
            }
            for found in discovery.backends
        ],
        "failures": [asdict(failure) for failure in discovery.failures],
    }


def _lines(discovery: Discovery) -> Iterator[str]:
    if not discovery.backends and not discovery.failures:
        yield "No backend is installed. Install one: pip install octavo-cpu"
    probes = {found.name: found.probe() for found in discovery.backends}
    best = next((found.name for found in _by_priority(discovery) if probes[found.name].available), None)
    for found in _by_priority(discovery):
        yield from _found_lines(found, probes[found.name], found.name == best)
    for failure in discovery.failures:
        yield from _failure_lines(failure)


def _by_priority(discovery: Discovery) -> list[FoundBackend]:
    return sorted(discovery.backends, key=lambda found: -found.backend.priority)


def _found_lines(found: FoundBackend, probe: Probe, best: bool) -> Iterator[str]:
    state = "available" if probe.available else "not available"
    yield f"{found.name}: {state}" + (", chosen by --backend auto" if best else "")
    yield f"  {found.backend.summary}"
    yield f"  package {found.package} {found.version}, contract version {found.backend.api_version}"
    yield f"  {probe.reason}"
    if probe.remedy:
        yield f"  to install what is missing: {probe.remedy}"
    for device in probe.devices:
        yield f"  device: {device}"
    for kernel in probe.kernels:
        state = "available" if kernel.available else "not available"
        chosen = ", chosen by --kernel auto" if kernel.selected else ""
        yield f"  kernel {kernel.name}: {state}{chosen}. {kernel.reason}"


def _failure_lines(failure: FailedPlugin) -> Iterator[str]:
    yield f"{failure.name}: cannot be used"
    yield f"  package {failure.package} {failure.version}"
    yield f"  {failure.reason}"
    for line in failure.traceback.splitlines():
        yield f"  | {line}"
