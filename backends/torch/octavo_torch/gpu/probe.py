"""What is found of a card and its software on this machine. Imports torch only where all else is in place."""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octavo.backend import Kernel, Probe
from octavo_torch.gpu.host_compiler import C, HostCompiler

INTERPRET = "TRITON_INTERPRET"

_ON = ("1", "true", "yes", "on", "y")
"""What Triton takes for a switch that is on, in letters of either case."""

_NO_DRIVER = "Install the driver, or choose another backend (--backend cpu)."
_INTERPRETER_ONLY = f"The interpreter runs Triton's kernels only; unset {INTERPRET} to run this one."


def interpreting() -> bool:
    """Whether Triton runs its kernels in the interpreter, on the host."""
    return os.environ.get(INTERPRET, "").lower() in _ON


@dataclass(frozen=True, slots=True)
class Card:
    """A card that torch sees. lacks: why the kernels cannot run on it, or ""."""

    name: str
    arch: str
    lacks: str = ""


@dataclass(frozen=True, slots=True)
class Library:
    """A vendor's own attention kernels, for those who ask for them by name.

    kernel: its name here. missing: says why it cannot be used, or "".
    """

    kernel: str
    missing: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a vendor's backend needs.

    toolkit: field of `torch.version` that a fitting build of torch has, and its name for people. install: how
    to get that build, with the Triton that it requires. hardware: what is missing before torch is
    asked, or "". cards: what torch sees; raises RuntimeError with the driver's own words. libraries: other kernels.
    compiler: which Triton calls on the host.
    """

    toolkit: str
    toolkit_name: str
    install: str
    hardware: Callable[[], str]
    cards: Callable[[], Sequence[Card]]
    libraries: tuple[Library, ...] = field(default=())
    compiler: HostCompiler = C


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The torch that is installed: its version, and the toolkits it was built for, by their field of torch.version."""

    version: str
    toolkits: dict[str, str]

    @property
    def made_for(self) -> str:
        names = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}
        found = [f"{names[name]} {version}" for name, version in self.toolkits.items() if name in names]
        return " and ".join(found) or "the CPU only"


def torch_build(location: Path | None = None) -> TorchBuild | None:
    """Read from torch's version.py, which takes a thousandth of the time of importing torch. None without torch.

    location: torch's directory, to look at another than the one that would be imported.
    """
    if location is None:
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            return None
        location = Path(found.origin).parent
    values: dict[str, str] = {}
    for statement in ast.parse((location / "version.py").read_text(encoding="utf-8")).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            values[target.id] = value.value
    return TorchBuild(values.pop("__version__", "of an unknown version"), values)


def probe(needs: Requirements) -> Probe:
    """What would run here. Everything that is missing is named at once."""
    if interpreting():
        return _interpreter(needs)
    missing = []
    command = ""
    if lacks := needs.hardware():
        missing += [lacks, _NO_DRIVER]
    build = torch_build()
    if build is None:
        missing.append("PyTorch is not installed.")
        command = needs.install
    elif needs.toolkit not in build.toolkits:
        missing.append(f"torch {build.version} is a build for {build.made_for}, not for {needs.toolkit_name}.")
        command = f"pip uninstall torch, then {needs.install}"  # pip takes any build for the one that is asked for
    if importlib.util.find_spec("triton") is None:
        missing.append("Triton, the compiler of the kernels, is not installed.")
        command = command or needs.install
    if missing:
        reason = " ".join(missing)
        return Probe(False, reason, command, kernels=_kernels(needs, reason))
    assert build is not None
    try:
        cards = needs.cards()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = f"torch {build.version} finds no card: {_first_line(error)}"
        return Probe(False, reason, kernels=_kernels(needs, reason))
    if not cards:
        reason = f"torch {build.version} finds no card."
        return Probe(False, reason, kernels=_kernels(needs, reason))
    devices = tuple(f"{card.name} ({card.arch})" for card in cards)
    if all(card.lacks for card in cards):
        return Probe(False, cards[0].lacks, devices=devices, kernels=_kernels(needs, cards[0].lacks))
    lacks, command = needs.compiler.missing()
    if lacks:
        return Probe(False, lacks, command, devices=devices, kernels=_kernels(needs, lacks))
    count = f"{len(cards)} cards" if len(cards) > 1 else "a card"
    reason = f"torch {build.version} and {count}: {', '.join(devices)}; kernel triton would run"
    return Probe(True, reason, devices=devices, kernels=_kernels(needs, ""))


def missing_module(module: str, install: str) -> str:
    """A sentence where a module is not installed, or ""."""
    return "" if importlib.util.find_spec(module) is not None else f"{module} is not installed: {install}"


def _interpreter(needs: Requirements) -> Probe:
    reason = f"{INTERPRET} is set: the Triton kernels run in Triton's interpreter on the host, for tests"
    others = ("torch", *(library.kernel for library in needs.libraries))
    kernels = (Kernel("triton", True, reason, selected=True), *(Kernel(n, False, _INTERPRETER_ONLY) for n in others))
    return Probe(True, f"{reason}; never chosen by itself.", kernels=kernels)


def _kernels(needs: Requirements, why_not: str) -> tuple[Kernel, ...]:
    """why_not: what no kernel can run without, or ""."""
    able = not why_not
    kernels = [
        Kernel("triton", able, why_not or "Octavo's own kernels, compiled for the card", selected=able),
        Kernel("torch", able, why_not or "torch's operations: slow, for comparison"),
    ]
    for library in needs.libraries:
        reason = why_not or library.missing()
        kernels.append(Kernel(library.kernel, not reason, reason or "installed; runs where it is asked for by name"))
    return tuple(kernels)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
