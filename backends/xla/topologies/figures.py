"""What a compiled step takes of a chip, and what a step of its model cannot do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.models.config import DecoderConfig
from octavo.planning import CachePlan

from .instructions import read_program

TOKENS, TILES, WRITE = "paged_attention_of_tokens", "paged_attention_of_tiles", "write_kv"
"""The names of the kernels in a program: attention of sequences with one query, and of those with more."""

Kernels = tuple[tuple[str, int], ...]
"""Launches of each kernel, by name."""

_OTHER_COLLECTIVES = ("reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one compiled step, on each of its chips; bytes but for counts and seconds.

    seconds: of processor time, for lowering and compiling. kv_tokens: that the KV cache holds. arguments: weights, KV
    cache and inputs. aliased: of the outputs, those that take an argument's place. code: the program's own. copies:
    what makes an array as large as a layer's KV cache.
    """

    seconds: float
    kv_tokens: int
    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int
    kernels: Kernels
    all_reduces: int
    all_gathers: int
    other_collectives: int
    copies: tuple[str, ...]

    @property
    def hbm(self) -> int:
        """All that is in a chip's memory while the step runs."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code


@dataclass(frozen=True, slots=True)
class Expected:
    """What a step has to have: the KV cache in its place, a launch of each kernel for each layer (attention has one for
    decodes and another where there are prompts), and the least communication that tensor parallelism comes with: the
    sum after attention and the sum after the feed-forward layers, and the vocabulary's parts where it is split.
    """

    aliased: int
    kernels: Kernels
    all_reduces: int
    all_gathers: int
    other_collectives: int = 0
    copies: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: DecoderConfig, plan: CachePlan, shards: int, decode_only: bool) -> Expected:
        """plan: of one shard."""
        kernels = [TOKENS, WRITE] if decode_only else [TOKENS, TILES, WRITE]
        return cls(
            aliased=plan.bytes,
            kernels=tuple((name, model.layers) for name in sorted(kernels)),
            all_reduces=2 * model.layers if shards > 1 else 0,
            all_gathers=1 if shards > 1 and not model.tied_embeddings else 0,
        )


def read_figures(compiled: Any, seconds: float, plan: CachePlan) -> Figures:
    """Of a program that jax compiled. plan: of the KV cache of one shard."""
    memory, program = compiled.memory_analysis(), read_program(compiled.as_text())
    layer_entries = plan.bytes // (plan.layout.layers * plan.layout.dtype.itemsize)
    return Figures(
        seconds=round(seconds, 1),
        kv_tokens=plan.capacity,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        kernels=tuple(sorted(program.kernels().items())),
        all_reduces=program.count("all-reduce"),
        all_gathers=program.count("all-gather"),
        other_collectives=sum(program.count(opcode) for opcode in _OTHER_COLLECTIVES),
        copies=program.copies(layer_entries),
    )
