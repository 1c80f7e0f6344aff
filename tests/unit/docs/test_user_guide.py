"""The user guide names every option and every metric there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from octavo_server.settings import Settings

GUIDE = (Path(__file__).parents[3] / "docs" / "user-guide.md").read_text()


@pytest.mark.parametrize("option", Settings.model_fields)
def test_the_guide_lists_each_option_in_its_table(option: str) -> None:
    rows = [line for line in GUIDE.splitlines() if line.startswith("| `")]
    assert any(f"`{option}`" in row.split("|")[1] for row in rows), f"{option} is not in the guide's table"


def test_the_guide_lists_no_option_that_is_gone() -> None:
    table = GUIDE.split("| option | default |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(Settings.model_fields)
