"""The steps that are compiled, and copies of blocks: of which models on which chips, and their way through core, as an
engine takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.backend import DType
from octavo.models.config import DecoderConfig
from octavo.packing import StepShape
from octavo.planning import CachePlan
from octavo.runner import Runner
from octavo.sampling.params import SamplingParams

from .chips import Chip
from .figures import Expected
from .models import MODELS, ModelShape

SEQUENCES = 64

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, top_k=100, min_p=0.05, logit_bias={1: 1.0}, logprobs=5)
"""All that the sampler can do to a batch, over the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class StepKind:
    """tokens: of each sequence. params: how all rows are sampled."""

    name: str
    tokens: int
    params: SamplingParams

    def run(self, runner: Runner, plan: CachePlan) -> None:
        """With block tables as wide as the longest context."""
        width = -(-plan.max_model_len // plan.layout.block_size)
        runner.rehearse(StepShape(SEQUENCES, self.tokens, width), self.params)

    def expected(self, model: DecoderConfig, plan: CachePlan, shards: int) -> Expected:
        return Expected.of_step(model, plan, shards, decode_only=self.tokens == 1)


@dataclass(frozen=True, slots=True)
class BlockCopies:
    """Copies of blocks between steps: where a sequence writes to a block that it shares, it gets its own first."""

    name: str
    pairs: int

    def run(self, runner: Runner, plan: CachePlan) -> None:
        runner.copy([(block, block + 1) for block in range(1, self.pairs + 1)])

    def expected(self, model: DecoderConfig, plan: CachePlan, shards: int) -> Expected:
        return Expected.of_copies(plan)


DECODE = StepKind("decodes, 64 tokens", 1, GREEDY)
MIXED = StepKind("prefills and decodes, 512 tokens", 8, GREEDY)
SAMPLING = StepKind("decodes, 64 tokens, sampled", 1, SAMPLED)
COPIES = BlockCopies("copies of 8 blocks", 8)

EIGHT_BITS = (DType.INT8, DType.FLOAT8_E4M3)
"""Of the KV caches whose entries have scales, one of integers and one of floats."""


@dataclass(frozen=True, slots=True)
class Case:
    """One step of one model, split over so many chips. fault: of `breaking`, for a step that is wrong."""

    chip: Chip
    model: ModelShape
    shards: int
    step: StepKind | BlockCopies
    kv_dtype: DType = DType.BFLOAT16
    fault: str | None = None

    @property
    def topology(self) -> str:
        return self.chip.topologies[self.shards]

    @property
    def name(self) -> str:
        """Of all but the chip."""
        return f"{self.model.name}, {self.shards} {'chip' if self.shards == 1 else 'chips'}: {self.step_name}"

    @property
    def step_name(self) -> str:
        """With the KV cache where that is not of the model's dtype."""
        return self.step.name if self.kv_dtype is DType.BFLOAT16 else f"{self.step.name}, {self.kv_dtype.value} cache"


def all_cases(chips: Sequence[Chip]) -> Iterator[Case]:
    """The whole models, on one chip and split over more; once for each chip all of the sampler, caches of eight bits,
    and copies of blocks, where heads of 128 have rows of 256 lanes.
    """
    for chip in chips:
        for model in MODELS.values():
            for shards in chip.topologies:
                yield Case(chip, model, shards, DECODE)
                yield Case(chip, model, shards, MIXED)
        yield Case(chip, MODELS["1B"], 1, SAMPLING)
        for kv_dtype in EIGHT_BITS:
            yield Case(chip, MODELS["1B"], 1, DECODE, kv_dtype)
            yield Case(chip, MODELS["1B"], 1, MIXED, kv_dtype)
        for kv_dtype in (DType.BFLOAT16, *EIGHT_BITS):
            yield Case(chip, MODELS["8B"], 1, COPIES, kv_dtype)


def quick_cases(chips: Sequence[Chip]) -> Iterator[Case]:
    """Two layers: of the small model decodes on one chip, also with a cache of eight bits, and one step with prompts,
    split over four; of the large one copies of blocks.
    """
    small, large = (model.shallow(2) for model in MODELS.values())
    for chip in chips:
        yield Case(chip, small, 1, DECODE)
    yield Case(chips[0], small, 4, MIXED)
    yield Case(chips[-1], small, 1, DECODE, DType.INT8)
    yield Case(chips[0], large, 1, COPIES, DType.FLOAT8_E4M3)
