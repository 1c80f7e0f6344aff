"""The example backend as an installed package."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "octavo-example-backend"


@pytest.fixture
def example_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """What an installer does, without a network: the modules on the path, and the metadata that pyproject.toml states.

    Returns the folders on the path, for processes of their own.
    """
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    for folder in (EXAMPLE, tmp_path):
        monkeypatch.syspath_prepend(folder)
    for module in [name for name in sys.modules if name.split(".")[0] == "octavo_example"]:
        monkeypatch.delitem(sys.modules, module)
    return EXAMPLE, tmp_path
