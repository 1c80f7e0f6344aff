"""What a compiled step takes of a chip, and what a step of its model cannot do without."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from octavo.backend import KVCache
from octavo.backend.tree import flatten
from octavo.models.config import DecoderConfig
from octavo.planning import CachePlan
from octavo_xla.kv import SCALED

from .instructions import read_program

TOKENS, TILES = "paged_attention_of_tokens", "paged_attention_of_tiles"
"""The names of the kernels in a program: attention of sequences with one query, and of those with more; ..."""

WRITE, WRITE_SCALES, COPY = "write_kv", "write_kv_scales", "copy_blocks"
"""... and of what changes the KV cache."""

Kernels = tuple[tuple[str, int], ...]
"""Launches of each kernel, by name."""

_OTHER_COLLECTIVES = ("reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one compiled step, on each of its chips; bytes but for counts and seconds.

    seconds: of processor time, for lowering and compiling. kv_tokens: that the KV cache holds. arguments: weights, KV
    cache and inputs. aliased: of the outputs, those that take an argument's place. code: the program's own. copies:
    what makes an array as large as one of the KV cache's, of entries or of scales.
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
    """What a program has to have: the KV cache in its place, so many launches of kernels, and so much communication."""

    aliased: int
    kernels: Kernels
    all_reduces: int
    all_gathers: int
    other_collectives: int = 0
    copies: tuple[str, ...] = ()

    @classmethod
    def of_step(cls, model: DecoderConfig, plan: CachePlan, shards: int, decode_only: bool) -> Expected:
        """A launch of each kernel for each layer (attention has one for decodes and another where there are prompts,
        the write another for scales), and the least communication that tensor parallelism comes with: the sum after
        attention and the sum after the feed-forward layers, and the vocabulary's parts where it is split.

        plan: of one shard.
        """
        kernels = [TOKENS, WRITE]
        if not decode_only:
            kernels.append(TILES)
        if plan.layout.dtype in SCALED:
            kernels.append(WRITE_SCALES)
        return cls(
            aliased=plan.bytes,
            kernels=tuple((name, model.layers) for name in sorted(kernels)),
            all_reduces=2 * model.layers if shards > 1 else 0,
            all_gathers=1 if shards > 1 and not model.tied_embeddings else 0,
        )

    @classmethod
    def of_copies(cls, plan: CachePlan) -> Expected:
        """Of blocks: a launch a layer, and nothing to say to other chips."""
        return cls(plan.bytes, ((COPY, plan.layout.layers),), all_reduces=0, all_gathers=0)


def read_figures(compiled: Any, seconds: float, plan: CachePlan, kv: KVCache) -> Figures:
    """Of a program that jax compiled. plan: of the KV cache of one shard. kv: the cache, whose arrays are shapes."""
    memory, program = compiled.memory_analysis(), read_program(compiled.as_text())
    arrays, _ = flatten(kv)
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
        copies=program.copies({prod(array.sharding.shard_shape(array.shape)) for array in arrays}),
    )
