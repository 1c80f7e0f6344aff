"""One step of the model as it reaches the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from octavo.backend.kv import KVCache
from octavo.backend.weights import Array


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the tokens of a step stand. Set by the runner; all arrays int32.

    Sequences with a single query (decodes) come first, then prefill chunks. The tokens of a sequence are contiguous.
    Rows beyond the real tokens and sequences are padding: a padding token has position 0, slot 0 (the null block) and
    sequence 0; a padding sequence has context length 0 and no tokens. What ops return in padding rows is unspecified.

    positions [tokens]: of each token in its sequence.
    slots [tokens]: where the token's key and value are written.
    sequences [tokens]: row of `block_tables` the token belongs to.
    query_starts [sequences + 1]: first token of each sequence; the last entry is the number of real tokens.
    context_lengths [sequences]: tokens in the cache once this step has written its own.
    block_tables [sequences, blocks]: blocks of each sequence in order, padded with the null block.
    decode_only: every sequence has at most one token.
    plan: whatever the backend's `stage` attached for its own kernels (FlashInfer's plan, split sizes); None otherwise.
    """

    positions: Array
    slots: Array
    sequences: Array
    query_starts: Array
    context_lengths: Array
    block_tables: Array
    decode_only: bool = False
    plan: Any = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """Tokens that the step before sampled and the host has not seen yet. Set by the runner; all arrays int32.

    Each running sequence owns a lane of a board of last tokens, which stays on the device: a step reads the board that
    the step before returned, and returns a new one. The shapes are the same in every step.

    last_tokens [lanes]: the board, a device array already when it comes to `stage`: an output of the step before, or
        zeros.
    lane_of_token [tokens]: the lane that holds the token's id; -1 where it is in `StepInputs.token_ids`.
    row_of_lane [lanes]: row of `StepInputs.logit_rows` whose sampled id the lane takes; -1 for a lane that stays.
    """

    last_tokens: Array
    lane_of_token: Array
    row_of_lane: Array


@dataclass(frozen=True, slots=True)
class StepInputs:
    """All that a step reads besides weights and KV cache; NumPy on the host, device arrays after `Device.stage`.

    token_ids int32 [tokens]. logit_rows int32 [rows]: tokens whose logits are sampled. adapter_ids int32 [tokens], -1
    for none, or None when no row uses an adapter. sampling: the sampler's own arrays, opaque to backends. feedback: on
    an asynchronous device, ids that are on the device only; None on all others.
    """

    token_ids: Array
    logit_rows: Array
    attention: AttentionMetadata
    adapter_ids: Array | None = None
    sampling: Any = None
    feedback: Feedback | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """The static shape of a step; hashable, the key under which a backend keeps what it compiled or captured.

    A size of 0 means any: a device without static shapes gets one bucket a variant and steps of their real size.
    variant: what else is static (which features the sampler uses), opaque to backends.
    """

    tokens: int
    sequences: int
    blocks: int
    rows: int
    decode_only: bool
    variant: Any = None


class Step(Protocol):
    """embed -> layers -> logits of the sampled rows -> sampler, as a pure function.

    Returns (outputs, kv): outputs is a dataclass of arrays; callers rebind kv and never use the old one again.
    Dataclasses are flattened with `octavo.backend.tree`.
    """

    def __call__(self, weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]: ...
