"""The steps that are compiled: which models on which chips, and their way through core, as an engine takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.packing import StepShape
from octavo.sampling.params import SamplingParams

from .chips import Chip
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

    def shape(self, max_model_len: int, block_size: int) -> StepShape:
        """Its size, with block tables as wide as the longest context."""
        return StepShape(SEQUENCES, self.tokens, -(-max_model_len // block_size))


DECODE = StepKind("decodes, 64 tokens", 1, GREEDY)
MIXED = StepKind("prefills and decodes, 512 tokens", 8, GREEDY)
SAMPLING = StepKind("decodes, 64 tokens, sampled", 1, SAMPLED)


@dataclass(frozen=True, slots=True)
class Case:
    """One step of one model, split over so many chips. fault: of `breaking`, for a step that is wrong."""

    chip: Chip
    model: ModelShape
    shards: int
    step: StepKind
    fault: str | None = None

    @property
    def topology(self) -> str:
        return self.chip.topologies[self.shards]

    @property
    def name(self) -> str:
        """Of all but the chip."""
        return f"{self.model.name}, {self.shards} {'chip' if self.shards == 1 else 'chips'}: {self.step.name}"


def all_cases(chips: Sequence[Chip]) -> Iterator[Case]:
    """The whole models, on one chip and split over more; all of the sampler once for each chip."""
    for chip in chips:
        for model in MODELS.values():
            for shards in chip.topologies:
                yield Case(chip, model, shards, DECODE)
                yield Case(chip, model, shards, MIXED)
        yield Case(chip, MODELS["1B"], 1, SAMPLING)


def quick_cases(chips: Sequence[Chip]) -> Iterator[Case]:
    """Two layers of the small model: decodes on one chip, and one step with prompts, split over four."""
    small = MODELS["1B"].shallow(2)
    for chip in chips:
        yield Case(chip, small, 1, DECODE)
    yield Case(chips[0], small, 4, MIXED)
