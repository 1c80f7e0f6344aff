"""Run the xpu backend's IPEX kernels for real: conformance on IPEX's CPU platform, in an environment of its own.

    python backends/xpu/ipex/check.py [--venv build/ipex-venv] [--report FILE] [--level LEVEL] [--case PATTERN]

IPEX 2.8 loads with torch 2.8 and no other, so the environment is made once, from `requirements.txt` (3.5 GB to
download, 5.8 GB on disk), and made again where that file changes. Standard library only; its exit code is that of
`octavo conformance run`: 0 where every case passed or is unsupported.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
REQUIREMENTS = HERE / "requirements.txt"
PACKAGES = [*(ROOT / part for part in ("core", "backends/torch", "backends/xpu", "conformance", "server")), HERE]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    folder = options.venv.resolve()
    make_environment(folder)
    command = [str(folder / "bin" / "octavo"), "conformance", "run", "--backend", "ipex-cpu", "--kernel", "ipex"]
    # What is not the kernel's goes sequence by sequence, and time is not what is checked.
    command += ["--patience", "4"]
    for level in options.level or ["contract", "ops"]:
        command += ["--level", level]
    if options.case:
        command += ["--case", options.case]
    if options.report:
        command += ["--report", str(options.report.resolve())]
    return subprocess.run(command, check=False).returncode


def make_environment(folder: Path) -> None:
    """Install what the check needs into `folder`, unless it is there already."""
    stamp, wanted = folder / "octavo-ipex", _fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"Making the environment {folder}; this takes some minutes.", flush=True)
    venv.create(folder, with_pip=True)
    # Without dependencies: torch asks for every CUDA library, and the requirements name those that it does not load
    # without; octavo-core asks for what reads models, which these levels do not do.
    options = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", *options]
    subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
    subprocess.run([*pip, *(part for package in PACKAGES for part in ("--editable", str(package)))], check=True)
    stamp.write_text(wanted)


def _fingerprint() -> str:
    """Changes where the environment has to be made again: with the requirements, and with a package's entry points."""
    files = (REQUIREMENTS, *(package / "pyproject.toml" for package in PACKAGES))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Conformance of the IPEX kernels on IPEX's CPU platform.")
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "ipex-venv", help="the environment's folder")
    parser.add_argument("--report", type=Path, help="where the report is written")
    parser.add_argument("--level", action="append", help="a level of the suite; may be repeated (contract and ops)")
    parser.add_argument("--case", help="only the cases whose id matches this pattern")
    return parser


if __name__ == "__main__":
    sys.exit(main())
