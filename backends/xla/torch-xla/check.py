"""The flavour `xla:torch`, in an environment of its own: conformance on torch-xla's CPU platform.

    python backends/xla/torch-xla/check.py [--venv build/torch-xla-venv] [--report FILE] [--level LEVEL]
                                           [--case PATTERN] [--environment | --compilations]

torch-xla 2.9 loads with torch 2.9 and no other, so the environment is made once, from `requirements.txt` (4 GB to
download, 6 GB on disk), and made again where that file changes. Standard library only; its exit code is that of
`octavo conformance run`: 0 where every case passed or is unsupported. `--environment` makes the environment and no
more; `--compilations` counts what a generation compiles.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
REQUIREMENTS = HERE / "requirements.txt"
PACKAGES = [*(ROOT / part for part in ("core", "backends/torch", "conformance", "server")), HERE]

# Most programs here run once: what LLVM's optimizer takes, it would never give back.
ENVIRONMENT = {"PJRT_DEVICE": "CPU", "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    folder = options.venv.resolve()
    make_environment(folder)
    if options.environment:
        return 0
    if options.compilations:
        command = [str(folder / "bin" / "python"), "-m", "octavo_torch_xla.compilations"]
    else:
        command = _conformance(folder, options)
    return subprocess.run(command, check=False, env={**os.environ, **ENVIRONMENT}).returncode


def make_environment(folder: Path) -> None:
    """Install what the check needs into `folder`, unless it is there already."""
    stamp, wanted = folder / "octavo-torch-xla", _fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"Making the environment {folder}; this takes some minutes.", flush=True)
    # venv refuses to write over an environment that another interpreter made; pip changes only what is not as asked.
    if not (folder / "bin" / "python").exists():
        venv.create(folder, symlinks=True, with_pip=True)
    # Without dependencies: torch asks for every CUDA library, and the requirements name those that it does not load
    # without.
    options = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", *options]
    subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
    subprocess.run([*pip, *(part for package in PACKAGES for part in ("--editable", str(package)))], check=True)
    stamp.write_text(wanted)


def _conformance(folder: Path, options: argparse.Namespace) -> list[str]:
    command = [str(folder / "bin" / "octavo"), "conformance", "run", "--backend", "xla:torch"]
    # Each shape is a program to compile, and time is not what is checked.
    command += ["--patience", "6", "--jobs", str(options.jobs)]
    for level in options.level or ["contract", "ops", "step"]:
        command += ["--level", level]
    if options.case:
        command += ["--case", options.case]
    if options.report:
        command += ["--report", str(options.report.resolve())]
    return command


def _fingerprint() -> str:
    """Changes where the environment has to be made again: with the requirements, and with a package's entry points."""
    files = (REQUIREMENTS, *(package / "pyproject.toml" for package in PACKAGES))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Conformance of the flavour xla:torch on torch-xla's CPU platform.")
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "torch-xla-venv", help="the environment's folder")
    parser.add_argument("--report", type=Path, help="where the report is written")
    parser.add_argument("--level", action="append", help="a level; may be repeated (contract, ops and step)")
    parser.add_argument("--case", help="only the cases whose id matches this pattern")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (2)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--environment", action="store_true", help="make the environment, and no more")
    other.add_argument("--compilations", action="store_true", help="count what a generation compiles, and no more")
    return parser


if __name__ == "__main__":
    sys.exit(main())
