"""What `octavo backends` says: which platform XLA would compile for here, and which attention kernel would run."""

from __future__ import annotations

from enum import Enum
from importlib.metadata import version
from importlib.util import find_spec

from octavo.backend import Kernel, Probe
from octavo_xla.platforms import Platform, default_platform, missing


class Attention(str, Enum):
    """The implementations of paged attention and of the KV write."""

    PALLAS = "pallas"  # kernels of our own, on a TPU
    XLA = "xla"  # plain operations, anywhere
    INTERPRETED = "pallas-interpreted"  # the kernels on a host: slow, for tests


def selected(platform: Platform) -> Attention:
    """What kernel = "auto" takes."""
    return Attention.PALLAS if platform is Platform.TPU else Attention.XLA


def probe() -> Probe:
    """What would run here; jax is not imported."""
    if not find_spec("jax"):
        return Probe(False, "jax is not installed.", "pip install 'octavo[xla]'")
    platform = default_platform()
    lacking, remedy = missing(platform)
    if lacking:
        return Probe(False, f"JAX_PLATFORMS asks for {platform.value}. {lacking}", remedy or "unset JAX_PLATFORMS")
    others = " ".join(_lacking(other) for other in Platform if other is not platform and missing(other)[0])
    reason = f"jax {version('jax')} compiles for platform {platform.value}. {others}".strip()
    return Probe(True, reason, devices=(platform.value,), kernels=_kernels(platform))


def _lacking(platform: Platform) -> str:
    """What a platform lacks, with what would bring it."""
    lacking, remedy = missing(platform)
    return f"{lacking[:-1]} ({remedy})." if remedy else lacking


def _kernels(platform: Platform) -> tuple[Kernel, ...]:
    """All that some platform of this machine runs: which one it is, the option `platform` may still change."""
    tpu = not missing(Platform.TPU)[0]
    chosen = selected(platform)
    return (
        Kernel(
            Attention.PALLAS.value,
            tpu,
            "Pallas kernels that walk the block table" if tpu else "Pallas kernels need a TPU",
            selected=chosen is Attention.PALLAS,
        ),
        Kernel(
            Attention.XLA.value,
            True,
            "plain XLA operations, on every platform",
            selected=chosen is Attention.XLA,
        ),
        Kernel(
            Attention.INTERPRETED.value,
            True,
            "the Pallas kernels in their interpreter, for tests: slow",
        ),
    )
