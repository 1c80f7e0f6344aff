"""Steps that are recorded once and replayed: a decode step costs the host one launch instead of hundreds."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from octavo.backend import Bucket, KVCache, Step, StepInputs
from octavo.backend.tree import flatten, unflatten
from octavo_torch.gpu.downloads import Downloads, pack
from octavo_torch.gpu.errors import is_full
from octavo_torch.gpu.packing import NOTHING, Layout
from octavo_torch.gpu.runtime import Graph, Runtime
from octavo_torch.gpu.uploads import Staged, Uploads

_log = logging.getLogger(__name__)

IDLE = 1000
"""Steps after which a graph that was not replayed may make room for another."""

IDLE_FROM_THE_START = 32
"""The same for one that was never replayed but when it was recorded, as those of the warm-up that no request needs."""


class RecordedStep:
    """A step of one bucket: eager the first time, which compiles its kernels; recorded the second; replayed from then.

    What cannot be recorded runs eagerly, and a sentence in the log says why.
    """

    def __init__(
        self, step: Step, bucket: Bucket, runtime: Runtime, cache: GraphCache, uploads: Uploads, downloads: Downloads
    ) -> None:
        self._step, self._bucket = step, bucket
        self._runtime, self._cache = runtime, cache
        self._uploads, self._downloads = uploads, downloads
        self._seen: set[Hashable] = set()  # forms of inputs that ran once
        self._refused: set[Hashable] = set()  # forms that could not be recorded

    def __call__(self, weights: Any, kv: KVCache, inputs: StepInputs) -> tuple[Any, KVCache]:
        staged = self._uploads.staged(inputs)
        form = staged.form
        key = self, form, self._cache.addresses(kv)
        recording = self._cache.use(key)
        if (
            recording is None
            and form in self._seen
            and form not in self._refused
            and self._cache.make_room(self._bucket)
        ):
            recording = self._record(weights, kv, staged)
            if recording is None:
                self._refused.add(form)
            else:
                self._cache.add(key, recording)
        if recording is None:
            self._seen.add(form)
            outputs, kv = self._step(weights, kv, inputs)
            return self._downloads.send(outputs), kv
        recording.take(staged)
        recording.graph.replay()
        # A copy: the next replay, of this graph or of another that shares its memory, writes over the outputs.
        made = recording.made
        return self._downloads.send_packed(made.outputs.clone(), made.layout, made.structure), kv

    def _record(self, weights: Any, kv: KVCache, staged: Staged) -> Recording | None:
        try:
            recording = Recording.make(self._runtime, self._step, weights, kv, staged)
            if self._cache.addresses(recording.made.kv) == self._cache.addresses(kv):
                return recording
            raise RuntimeError("it does not write its keys and values in place")
        except Exception as error:  # whatever it is, the step still runs without a graph
            more = ""
            if is_full(error):
                self._cache.most_sequences = self._bucket.sequences - 1
                more = (
                    ", and so do all of as many sequences or more; a lower max_num_seqs or gpu_memory_utilization "
                    "leaves room for graphs"
                )
            _log.warning(
                "The decode step of %d sequences and %d blocks could not be recorded as a graph; it runs without one, "
                "slower%s: %s: %s",
                self._bucket.sequences,
                self._bucket.blocks,
                more,
                type(error).__name__,
                str(error).partition("\n")[0],
            )
            return None


class GraphCache:
    """The recordings of one device, within a budget of its memory, in bytes.

    Once the budget is spent a new recording takes the place of the one that was not used for longest, if that has been
    idle for IDLE steps, or for IDLE_FROM_THE_START if no step ever used it. While all are in use the newcomer runs
    eagerly: recording costs as much as many steps, and a cache that turns over would record all the time.

    most_sequences: of a step that may be recorded, once the card had no room for a larger one.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.spent = 0
        self.most_sequences: float = math.inf
        # Each with the step of its last use, and after how many more it may be let go.
        self._recordings: OrderedDict[Hashable, tuple[Recording, int, int]] = OrderedDict()
        self._step = 0
        self._kv: KVCache = ()
        self._addresses: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self._recordings)

    def use(self, key: Hashable) -> Recording | None:
        """The recording of a step that is about to run."""
        self._step += 1
        found = self._recordings.pop(key, None)
        if found is None:
            return None
        self._recordings[key] = found[0], self._step, IDLE
        return found[0]

    def make_room(self, bucket: Bucket) -> bool:
        """Whether a step of this bucket may be recorded; lets go of an idle one if need be."""
        if bucket.sequences > self.most_sequences:
            return False
        if self.spent < self.budget:
            return True
        for key, (_, used, patience) in self._recordings.items():
            if self._step - used >= patience:
                del self._recordings[key]  # its memory stays in the graphs' pool, for the one that comes
                return True
        return False

    def add(self, key: Hashable, recording: Recording) -> None:
        self.spent += recording.graph.memory
        self._recordings[key] = recording, self._step, IDLE_FROM_THE_START

    def addresses(self, kv: KVCache) -> tuple[int, ...]:
        """Where a KV cache lies: what was recorded on one cache writes into that one."""
        if kv is not self._kv:
            self._kv = kv
            self._addresses = tuple(array.data_ptr() for array in flatten(kv)[0])
        return self._addresses

    def clear(self) -> None:
        """Let go of all recordings."""
        self._recordings.clear()
        self._kv, self._addresses = (), ()
        self.spent = 0


@dataclass(frozen=True, slots=True)
class Recording:
    """A step in its recorded form, and the memory on which it works.

    packed: uint8, the inputs that come in one transfer; loose: the others. made: what the step returned.
    """

    graph: Graph
    packed: torch.Tensor
    loose: tuple[torch.Tensor, ...]
    made: Made

    @classmethod
    def make(cls, runtime: Runtime, step: Step, weights: Any, kv: KVCache, staged: Staged) -> Recording:
        """Record a step on copies of these inputs. Raises what the step and `Runtime.record` raise."""
        # With what they hold now: the host records by running.
        packed = staged.packed.clone()
        loose = {index: staged.leaves[index].clone() for index in staged.form.loose}
        views = iter(staged.form.layout.tensors(packed) if packed.numel() else ())
        leaves = [loose[index] if index in loose else next(views) for index in range(len(staged.leaves))]
        inputs = unflatten(staged.form.structure, leaves)
        made = Made()

        def work() -> None:
            outputs, made.kv = step(weights, kv, inputs)
            tensors, made.structure = flatten(outputs)
            made.outputs, made.layout = pack(tensors)

        return cls(runtime.record(work), packed, tuple(loose.values()), made)

    def take(self, staged: Staged) -> None:
        """Queue copies of a step's inputs to where the graph reads them."""
        self.packed.copy_(staged.packed)
        for place, index in zip(self.loose, staged.form.loose, strict=True):
            place.copy_(staged.leaves[index])


@dataclass(slots=True)
class Made:
    """Outputs of a recorded step: uint8, arrays of `layout` in one buffer, and the structure of their tree."""

    outputs: Any = None
    layout: Layout = NOTHING
    structure: Hashable = None
    kv: KVCache = ()
