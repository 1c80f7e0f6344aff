"""A card that is lost, and then hangs, is one sentence on standard error: no traceback, and nobody waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FIXTURE = Path(__file__).parents[1] / "fixtures" / "lost_backend"


def octavo(command: str, steps: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a card that is lost after so many steps."""
    given = ("--backend", "lost", "--backend-options", f"steps={steps}", "--max-model-len", "64", "--max-num-seqs", "1")
    return subprocess.run(
        [sys.executable, "-m", "octavo_server", command, "demo", *given, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(FIXTURE)},
    )


def test_generate_ends_with_the_reason_after_the_text_that_had_come() -> None:
    ended = octavo("generate", 3, "--prompt", "The capital of France is", "--max-tokens", "20")
    assert ended.stderr.splitlines()[-1] == "octavo: The device is lost: The card fell off the bus."
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 1
    assert ended.stdout.strip()
    assert ended.stdout.endswith("\n")


def test_a_server_whose_card_is_lost_in_the_warm_up_ends_with_the_reason_though_closing_it_hangs() -> None:
    ended = octavo("serve", 2, "--port", "0")
    assert "lost in the warm-up: DeviceLostError: The card fell off the bus." in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 2
