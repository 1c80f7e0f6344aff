"""A vendor of cards: what its package says, and the device made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import TypeAlias

from octavo.backend import BackendUnavailableError, DeviceConfig, UnsupportedError
from octavo_torch.gpu.device import GpuDevice
from octavo_torch.gpu.errors import in_contract_words
from octavo_torch.gpu.host_runtime import HostRuntime
from octavo_torch.gpu.kernel_cache import fingerprint, use_kernel_cache
from octavo_torch.gpu.kernel_choice import KernelChoice, TorchKernels
from octavo_torch.gpu.probe import Card, interpreting
from octavo_torch.gpu.runtime import Properties, Runtime
from octavo_torch.gpu.torch_runtime import TorchRuntime
from octavo_torch.gpu.triton_kernels import TritonKernels
from octavo_torch.kernels.catalog import tunables
from octavo_torch.kernels.interpreter import hasten
from octavo_torch.kernels.launch import KernelRuntime
from octavo_torch.kernels.target import Target
from octavo_torch.kernels.tuning import TuningTable

AUTO = "auto"


MakeKernels: TypeAlias = Callable[[KernelRuntime], KernelChoice]
"""Makes the choice of a vendor's own kernels; what those do not take runs on this package's."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """What one vendor's cards need beside the code that all share.

    backend: its name. kind: torch's device type, "cuda" or "xpu". generator: Triton's, "cuda", "hip" or "xpu".
    properties: of card `index`; raises UnsupportedError for one that there is not, BackendUnavailableError for one that
        the kernels cannot run on.
    tuning: the package's tuning table. stand_in: the architecture that Triton's interpreter stands for.
    libraries: kernels of the vendor's own, by name.
    """

    backend: str
    kind: str
    generator: str
    properties: Callable[[int], Properties]
    tuning: Traversable
    stand_in: Target
    libraries: Mapping[str, MakeKernels] = field(default_factory=lambda: MappingProxyType({}))


def open_card(vendor: Vendor, config: DeviceConfig) -> GpuDevice:
    """The device that `config` asks for; on the host where Triton interprets."""
    notes: tuple[str, ...] = ()
    runtime: Runtime
    if interpreting():
        hasten()
        target = replace(vendor.stand_in, interpreted=True)
        runtime = HostRuntime(target)
        notes = (f"The kernels run in Triton's interpreter on the host, as tuned for {target.arch}: for tests only.",)
    else:
        card = vendor.properties(config.index)
        target = Target(vendor.generator, card.arch, card.warp_size, card.shared_memory, card.processors)
        notes = (use_kernel_cache(fingerprint(card.arch, (files("octavo_torch") / "kernels", vendor.tuning))),)
        runtime = TorchRuntime(vendor.kind, config.index, card)
    with in_contract_words(runtime, f"Opening {runtime.properties.name}"):
        runtime.activate()
    kernels = _kernels(vendor, config.kernel, target)
    return GpuDevice(vendor.backend, runtime, kernels, config, notes)


def choose_card(backend: str, cards: Sequence[Card], index: int) -> Card:
    """Card `index` of those that were found. Raises UnsupportedError where there is none, BackendUnavailableError for
    one that the kernels cannot run on.
    """
    if not 0 <= index < len(cards):
        last = f"cards 0 to {len(cards) - 1}" if len(cards) > 1 else "one card, of index 0"
        raise UnsupportedError(f"Backend {backend!r} has {last}; {index} was asked for.")
    if cards[index].lacks:
        raise BackendUnavailableError(cards[index].lacks)
    return cards[index]


def _kernels(vendor: Vendor, name: str, target: Target) -> KernelChoice:
    kernel_runtime = KernelRuntime(target, TuningTable.read(vendor.tuning, tunables()))
    choices: dict[str, MakeKernels] = {"triton": TritonKernels, "torch": lambda _: TorchKernels(), **vendor.libraries}
    if name != AUTO and name not in choices:
        raise BackendUnavailableError(
            f"Backend {vendor.backend!r} has no kernel {name!r}; it has: {', '.join(choices)}."
        )
    return choices["triton" if name == AUTO else name](kernel_runtime)
