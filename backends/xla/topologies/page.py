"""docs/tpu.md: what each step takes of each chip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from .budget import MIB, Budget
from .build import MAX_MODEL_LEN, Compiled, Outcome, TooLarge
from .cache import compiler
from .chips import GIB
from .models import MODELS
from .steps import SAMPLED, SEQUENCES, Case

COMMAND = "python backends/xla/topologies --page docs/tpu.md"

HEAD = f"""# Whole steps on TPUs

This page is written by

    {COMMAND}

which is part of `make xla-check`. It needs no TPU: libtpu compiles for chips that are not there. Each row is a whole
step, from token ids to sampled tokens, of a model of that shape in bfloat16. It is planned, loaded and rehearsed as an
engine does it: with all the KV cache that an engine takes unasked, for {SEQUENCES} sequences and contexts of up to
{MAX_MODEL_LEN} tokens; in bfloat16 too, unless the row names another cache. Copies of blocks are what it does between
steps where sequences share a block that one of them writes to. The command fails where a step does not compile, where
it does not fit into the chip's memory, and where

- the KV cache does not keep its place: the aliased bytes are the pool's, to the byte, and nothing makes a copy of it,
- a layer has another number of attention and KV write kernels than it should: a launch of each, one more of attention
  where there are prompts beside decodes, and one more of the write where the cache has scales; or one that copies,
- chips talk more than they have to: two all-reduces a layer, and one all-gather of the logits where the output
  embedding is split over chips; nothing on one chip,
- temporary memory is above its budget (`backends/xla/budgets`; `--write-budgets` renews them).

`--quick` takes two layers of the models, which is what the tests do; `--break vmem` shows that a kernel which
takes too much of a chip's vector memory fails the command.

**What this does not prove.** Nothing on this page has run on a TPU. That the steps compute the right thing is shown by
conformance on XLA:CPU, and for the kernels in Pallas's interpreters; how fast they are, only a TPU will tell.
"""


def page(outcomes: Sequence[tuple[Case, Outcome]], budgets: Mapping[str, Budget]) -> str:
    """The page. outcomes: of all cases. budgets: by chip."""
    lines = [HEAD, f"Models: {_models()} Compiled by {compiler()}.", ""]
    lines += [
        "| chips | model | step | seconds | HBM, GiB | of it KV cache | temporary, MiB | all-reduces | all-gathers "
        "| kernels |",
        f"|{'---|' * 10}",
    ]
    lines += [_row(case, outcome) for case, outcome in outcomes]
    return "\n".join([*lines, *_notes(), *_too_large(outcomes, budgets)]) + "\n"


def _row(case: Case, outcome: Outcome) -> str:
    head = f"| {case.shards} x {case.chip.name} ({case.topology}) | {case.model.name} | {case.step_name} |"
    if not isinstance(outcome, Compiled):
        return f"{head} | {'does not fit' if isinstance(outcome, TooLarge) else 'does not compile'} | | | | | |"
    figures = outcome.figures
    cells = (
        f"{figures.seconds:.0f}",
        f"{figures.hbm / GIB:.2f} of {case.chip.hbm / GIB:.2f}",
        f"{figures.aliased / GIB:.2f} ({figures.kv_tokens:,} tokens)",
        f"{figures.temporary / MIB:.1f}",
        str(figures.all_reduces),
        str(figures.all_gathers),
        " + ".join(str(count) for _, count in figures.kernels),
    )
    return f"{head} {' | '.join(cells)} |"


def _models() -> str:
    """What the names stand for."""
    return " ".join(f"{model.name} is of the shape of {model.like}." for model in MODELS.values())


def _notes() -> Iterator[str]:
    yield ""
    yield (
        "Seconds are the processor time of lowering and compiling one step on the machine that wrote this page. HBM is "
        "all that is in a chip's memory while the step runs: weights, KV cache, inputs, outputs, temporaries and the "
        "program. Kernels are launches of attention (of prompts, where there are any, and of decodes) and of the KV "
        "write (of entries, and of scales where there are any), or of copies. The embedding is whole on each chip, "
        "also where the output embedding is tied to it. Sampled steps have "
        f"{_sampler()}; the others are greedy."
    )


def _sampler() -> str:
    parameters = (f"{name} {getattr(SAMPLED, name)}" for name in ("temperature", "top_p", "top_k", "min_p", "logprobs"))
    return f"{', '.join(parameters)} and a logit bias"


_REFUSED = (
    "An engine refuses these before it loads anything: it finds no room for a KV cache beside the weights. With one of "
    "a single context all the same, this is what it makes of the compiler's verdict:"
)


def _too_large(outcomes: Iterable[tuple[Case, Outcome]], budgets: Mapping[str, Budget]) -> Iterator[str]:
    """What a user is told, once for each step that does not fit, and why that is to be expected."""
    large = [(case, outcome) for case, outcome in outcomes if isinstance(outcome, TooLarge)]
    if large:
        yield from ("", "## What does not fit", "", _REFUSED, "")
    for case, outcome in large:
        reason = budgets[case.chip.name].too_large.get(case.name, "")
        yield f"- {case.chip.name}, {case.name}{f' ({reason})' if reason else ''}: {outcome.sentence}"
