"""What Triton's just-in-time compiler would make of a launch, for a device that is not here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile
from triton.compiler.compiler import make_backend
from triton.runtime.cache import get_cache_key
from triton.runtime.jit import create_function_from_signature

from octavo_torch.kernels.launch import Launch
from octavo_torch.kernels.target import Target


@dataclass(frozen=True, slots=True)
class Specialised:
    """A launch with all that its code depends on.

    function: name of the kernel's function. dynamic: type and attributes (divisible by 16, equal to 1, small) of each
    argument that has a value only at run time. constants: the others by name; an absent argument (None) is one of them.
    options: of the code generator, as asked for.
    """

    function: str
    dynamic: tuple[tuple[str, str, str], ...]
    constants: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, int], ...]
    source: ASTSource
    gpu: GPUTarget

    def fingerprint(self) -> str:
        """Of everything the compiled code depends on: sources, this Triton, its assembler, target and options."""
        backend = make_backend(self.gpu)
        options = backend.parse_options(dict(self.options))
        key = get_cache_key(self.source, backend, options, get_cache_invalidating_env_vars())
        return hashlib.sha256(key.encode()).hexdigest()

    def compile(self) -> Any:
        """Triton's compiled kernel. Raises whatever the compiler raises."""
        return triton_compile(self.source, target=self.gpu, options=dict(self.options))


def specialised(launch: Launch, target: Target) -> Specialised:
    """Specialise with the code that Triton's own launches go through.

    It asks a tensor for its dtype, the address's divisibility by 16 and, on AMD, the size of its memory, all of which
    meta tensors answer as tensors on a device do: memory there begins on a multiple of 256 bytes.
    """
    gpu = gpu_target(target)
    backend = make_backend(gpu)
    function = launch.kernel
    bind = create_function_from_signature(function.signature, function.params, backend)
    arguments, specialisation, _ = bind(**launch.arguments)
    _, signature, constants, attributes = function._pack_args(
        backend, dict(launch.options), arguments, specialisation, dict(launch.options)
    )
    constant = {name for index, name in enumerate(arguments) if index in function.constexprs or arguments[name] is None}
    return Specialised(
        function=function.__name__,
        dynamic=tuple(
            # An integer that equals 1 is made a constant too, and is none of the kernel's own.
            (name, kind, str(attributes.get((index,), "")))
            for index, (name, kind) in enumerate(signature.items())
            if name not in constant
        ),
        constants=tuple((name, str(value)) for name, value in arguments.items() if name in constant),
        options=tuple(sorted(launch.options.items())),
        source=ASTSource(function, signature, constants, attributes),
        gpu=gpu,
    )


def gpu_target(target: Target) -> GPUTarget:
    """A target as Triton names it."""
    if target.generator == "cuda":
        return GPUTarget("cuda", int(target.arch.removeprefix("sm_")), target.warp_size)
    return GPUTarget(target.generator, target.arch, target.warp_size)


def generators() -> Mapping[str, str]:
    """The code generators that this Triton has: what targets call it -> what Triton does."""
    names = {"nvidia": "cuda", "amd": "hip", "intel": "xpu"}
    return {names[name]: name for name in backends if name in names}
