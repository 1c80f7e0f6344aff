"""Builds the native kernels: one source, compiled for three instruction sets of x86 and one of anything else.

They are plain C++17 with a C interface, so neither torch nor Python headers are needed. Each is optional: where there
is no compiler the package installs all the same and runs on torch alone, and says so.
"""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("octavo_cpu") / "native"
FLAGS = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]
X86 = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
}
ISAS = {"generic": [], **(X86 if platform.machine().lower() in ("x86_64", "amd64") else {})}


class BuildKernels(build_ext):
    """Gives each instruction set a build folder of its own: their objects have the same names."""

    def build_extension(self, ext: Extension) -> None:
        shared = self.build_temp
        self.build_temp = str(Path(shared) / ext.name)
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = shared


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            f"octavo_cpu.native.kernels_{isa}",
            sources=sorted(map(str, NATIVE.glob("*.cpp"))),
            depends=sorted(map(str, NATIVE.glob("*.h"))),
            extra_compile_args=FLAGS + flags,
            language="c++",
            optional=True,
        )
        for isa, flags in ISAS.items()
    ],
)
