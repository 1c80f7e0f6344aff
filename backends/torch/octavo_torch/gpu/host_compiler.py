"""The host's compiler: Triton builds its driver and the launchers of kernels with it, when a kernel first runs."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostCompiler:
    """A compiler as Triton looks for it.

    language: its name for people. variable: the environment's, which goes before all. programs: looked for on the PATH.
    package: of Debian and Ubuntu, which has one.
    """

    language: str
    variable: str
    programs: tuple[str, ...]
    package: str

    def missing(self) -> tuple[str, str]:
        """Sentences where Triton could not build and the command that helps on Debian and Ubuntu, or "" and "".

        Nothing is run for it.
        """
        lacks = {self.package: self._missing_program(), "python3-dev": _missing_headers()}
        packages = [package for package, sentence in lacks.items() if sentence]
        if not packages:
            return "", ""
        needs = (
            f"Triton builds its driver with a {self.language} compiler and Python's headers when a kernel first runs."
        )
        advice = f"Install {' and '.join(packages)}, or what your system calls the like."
        return " ".join([needs, *filter(None, lacks.values()), advice]), f"apt install {' '.join(packages)}"

    def _missing_program(self) -> str:
        named = os.environ.get(self.variable)
        if named is not None:
            return "" if shutil.which(named) else f"{self.variable} names {named!r}, which is not there."
        if any(shutil.which(program) for program in self.programs):
            return ""
        return f"None of {', '.join(self.programs)} is on the PATH, and {self.variable} names none."


C = HostCompiler("C", "CC", ("gcc", "clang"), "gcc")
CXX = HostCompiler("C++", "CXX", ("icpx", "clang++", "g++"), "g++")


def _missing_headers() -> str:
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":  # Debian's own, with no headers in it
        scheme = "posix_prefix"
    folder = Path(sysconfig.get_paths(scheme)["include"])
    more = [os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")]  # of the compilers
    folders = [folder, *(Path(entry) for paths in more for entry in paths.split(os.pathsep) if entry)]
    return "" if any((one / "Python.h").is_file() for one in folders) else f"There is no {folder / 'Python.h'}."
