"""The vendor guide shows the example package as it is: every line of its modules once, in order, and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from octavo.backend import Collectives, Device, Ops

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "octavo-example-backend"
GUIDE = (ROOT / "docs" / "vendor-guide.md").read_text()
BLOCKS = re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', GUIDE, re.MULTILINE | re.DOTALL)


def lines_of(text: str) -> list[str]:
    """What matters of a text: blank lines between two blocks are not written twice."""
    return [line for line in text.splitlines() if line.strip()]


def shown(module: str) -> list[str]:
    """A module as the guide shows it. Blocks may stand in an order that reads better: back to the file's own."""
    source = (EXAMPLE / module).read_text()
    blocks = [block for name, block in BLOCKS if name == module]
    for block in blocks:
        assert block in source, f"the guide shows what {module} does not say:\n{block}"
    return lines_of("\n".join(sorted(blocks, key=source.index)))


@pytest.mark.parametrize("module", ["plugin.py", "device.py", "fast.py"])
def test_the_guide_shows_each_module_of_the_example_whole(module):
    assert shown(f"octavo_example/{module}") == lines_of((EXAMPLE / "octavo_example" / module).read_text())


def test_all_python_in_the_guide_is_the_examples():
    assert GUIDE.count("```python") == len(BLOCKS)
    assert {name for name, _ in BLOCKS} == {f"octavo_example/{module}.py" for module in ("plugin", "device", "fast")}


def test_the_guides_entry_point_is_the_examples():
    (block,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert block in (EXAMPLE / "pyproject.toml").read_text()
    assert tomllib.loads(block)["project"]["entry-points"] == {"octavo.backends": {"example": "octavo_example.plugin"}}


def test_each_optional_method_of_a_device_is_explained():
    optional = {name for name in vars(Device) if not name.startswith("_") and callable(getattr(Device, name))}
    for method in optional - Device.__abstractmethods__:
        assert f"`{method}`" in GUIDE, f"the guide does not explain Device.{method}"


def test_the_guide_counts_the_operations_right():
    def methods(kind: type) -> int:
        return sum(callable(value) and not name.startswith("_") for name, value in vars(kind).items())

    assert f"All {methods(Ops)} operations" in GUIDE
    assert methods(Collectives) == 2
    assert "`collectives` has two more methods" in GUIDE
    assert len(Device.__abstractmethods__) == 5
    assert "## 2. A device: five methods" in GUIDE


def test_what_octavo_backends_is_shown_to_print_is_what_the_plugin_says(example_installed):
    from octavo_example.plugin import octavo_backends

    (backend,) = octavo_backends()
    assert backend.summary in GUIDE
    assert backend.probe().reason in GUIDE
    for kernel in backend.probe().kernels:
        assert f"kernel {kernel.name}: available" in GUIDE
        assert kernel.reason in GUIDE
