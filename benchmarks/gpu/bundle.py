"""`make gpu-bundle`: the wheels that a machine with torch, triton and transformers still lacks, for its Python.

    python -m benchmarks.gpu.bundle [--python 3.12] [--folder build/gpu-bundle]

Nothing is installed here. The folder also says which commit it was made at, as a machine may get the files of a
checkout without its history.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.environment import BUNDLE, ROOT

MOST_BYTES = 48 << 20
"""What the bundle may take: it is carried along with the checkout."""

_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
              "manylinux_2_12_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")  # fmt: skip


def collect(folder: Path, python: str) -> int:
    """Fetch the wheels of bundle.txt into an emptied folder; their bytes. Raises SystemExit with a sentence."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    command += ["--dest", str(folder), "--requirement", str(Path(__file__).with_name("bundle.txt"))]
    if subprocess.run(command).returncode != 0:
        raise SystemExit("The bundle could not be fetched.")
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    if size > MOST_BYTES:
        raise SystemExit(f"The bundle takes {size:,} bytes; {MOST_BYTES:,} is the most that is carried along.")
    (folder / "commit").write_text(commit() + "\n", encoding="utf-8")
    return size


def commit(bundle: Path = BUNDLE) -> str:
    """The commit of this checkout, "-dirty" behind it where files differ; the bundle's without a history; or ""."""
    try:
        said = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
        )
        if said.returncode == 0:
            return said.stdout.strip()
    except FileNotFoundError:
        pass
    kept = bundle / "commit"
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="Python of the machine it is for (3.12)")
    parser.add_argument("--folder", type=Path, default=BUNDLE)
    given = parser.parse_args()
    size = collect(given.folder, given.python)
    print(f"{given.folder}: {len(list(given.folder.glob('*.whl')))} wheels, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
