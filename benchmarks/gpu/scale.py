"""How large everything is: the sizes of a real check, and the tiny ones of a dry run.

A dry run takes every path with nothing to show for it: its numbers are those of an interpreter on a host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

LLAMA_3_8B: Mapping[str, Any] = MappingProxyType(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
)
"""The shape of Llama 3 8B, as its `config.json` has it."""

TINY: Mapping[str, Any] = MappingProxyType(
    {
        **LLAMA_3_8B,
        "vocab_size": 160,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "torch_dtype": "float32",
    }
)


@dataclass(frozen=True, slots=True)
class Decode:
    """Attention of one token for each of `batch` sequences of `context` tokens."""

    batch: int
    context: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """Attention of the last `queries` tokens of each of `batch` sequences of `context` tokens."""

    batch: int
    queries: int
    context: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """`concurrency` requests that are all there at the start, each `prompt` tokens long, with `output` to generate."""

    concurrency: int
    prompt: int
    output: int

    @property
    def name(self) -> str:
        return f"requests={self.concurrency},prompt={self.prompt},output={self.output}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of one check.

    measure_seconds, samples: what one timing takes, and the fewest samples of it.
    rotated_bytes: inputs of one timing together; several times any cache, so that what is measured is memory.
    rows: tokens of the elementwise kernels. quantized_rows: of quantized linear layers.
    peer_seconds: after which a peer's run is cut short.
    """

    dry: bool
    backend: str
    kernel: str
    dtype: str
    model_name: str
    model: Mapping[str, Any]
    measure_seconds: float
    samples: int
    rotated_bytes: int
    copy_bytes: int
    matrix_size: int
    decodes: tuple[Decode, ...]
    prefills: tuple[Prefill, ...]
    flex_decodes: tuple[Decode, ...]
    flex_prefills: tuple[Prefill, ...]
    rows: tuple[int, ...]
    quantized_rows: tuple[int, ...]
    quantized_group: int
    experts: tuple[int, int, int, int]  # experts, chosen, hidden, intermediate
    expert_rows: tuple[int, ...]
    top_k: tuple[int, int, int]  # rows, vocabulary, k
    single: Traffic
    traffics: tuple[Traffic, ...]
    running: Traffic
    profiled_steps: int
    batched_tokens: int
    load_bytes: int
    peer_single: Traffic
    peer_static: tuple[Traffic, ...]
    peer_continuous: tuple[Traffic, ...]
    peer_seconds: float
    peer_memory: Mapping[str, int]  # of transformers' continuous batching; empty for its own choice
    conformance_cases: str  # pattern of a dry run; "" for all
    conformance_jobs: int

    @property
    def heads(self) -> int:
        return int(self.model["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        return int(self.model["num_key_value_heads"])

    @property
    def head_size(self) -> int:
        return int(self.model["head_dim"])

    @property
    def hidden(self) -> int:
        return int(self.model["hidden_size"])

    @property
    def intermediate(self) -> int:
        return int(self.model["intermediate_size"])


def scale_of(backend: str, kernel: str, dry: bool) -> Scale:
    """The sizes of a check of one backend."""
    return _dry(backend, kernel) if dry else _full(backend, kernel)


def _full(backend: str, kernel: str) -> Scale:
    return Scale(
        dry=False,
        backend=backend,
        kernel=kernel,
        dtype="bfloat16",
        model_name="Llama 3 8B's shape, random weights",
        model=LLAMA_3_8B,
        measure_seconds=0.2,
        samples=5,
        rotated_bytes=512 << 20,
        copy_bytes=4 << 30,
        matrix_size=8192,
        decodes=tuple(Decode(batch, context) for context in (2048, 8192, 32768) for batch in (1, 16, 64, 256)),
        prefills=(Prefill(1, 2048, 2048), Prefill(1, 8192, 8192), Prefill(8, 2048, 2048), Prefill(1, 2048, 8192)),
        flex_decodes=(Decode(16, 8192), Decode(64, 2048)),
        flex_prefills=(Prefill(1, 8192, 8192),),
        rows=(256, 8192),
        quantized_rows=(1, 16, 64),
        quantized_group=128,
        experts=(8, 2, 4096, 14336),
        expert_rows=(1, 64, 1024),
        top_k=(64, 128256, 64),
        single=Traffic(1, 128, 256),
        traffics=tuple(Traffic(concurrency, 1000, 1000) for concurrency in (64, 128, 256)),
        running=Traffic(256, 128, 160),
        profiled_steps=16,
        batched_tokens=8192,
        load_bytes=1 << 30,
        peer_single=Traffic(1, 128, 64),
        peer_static=(Traffic(64, 1000, 1000),),
        peer_continuous=(Traffic(64, 1000, 256),),
        peer_seconds=35.0,
        peer_memory=MappingProxyType({}),
        conformance_cases="",
        conformance_jobs=8,
    )


def _dry(backend: str, kernel: str) -> Scale:
    return Scale(
        dry=True,
        backend=backend,
        kernel=kernel,
        dtype="float32",
        model_name="a tiny model, random weights",
        model=TINY,
        measure_seconds=0.0,
        samples=1,
        rotated_bytes=1 << 10,
        copy_bytes=1 << 20,
        matrix_size=64,
        decodes=(Decode(2, 24),),
        prefills=(Prefill(1, 16, 16), Prefill(1, 8, 24)),
        flex_decodes=(Decode(2, 128),),
        flex_prefills=(Prefill(1, 128, 128),),
        rows=(3,),
        quantized_rows=(3,),
        quantized_group=32,
        experts=(4, 2, 64, 32),
        expert_rows=(3,),
        top_k=(2, 160, 8),
        single=Traffic(1, 4, 3),
        traffics=(Traffic(2, 4, 3),),
        running=Traffic(2, 4, 8),
        profiled_steps=1,
        batched_tokens=64,
        load_bytes=1 << 20,
        peer_single=Traffic(1, 4, 3),
        peer_static=(Traffic(2, 4, 3),),
        peer_continuous=(Traffic(2, 4, 3),),
        peer_seconds=20.0,
        peer_memory=MappingProxyType({"num_blocks": 8, "max_batch_tokens": 32}),
        conformance_cases="ops/rms_norm/float32/p*",
        conformance_jobs=1,
    )
