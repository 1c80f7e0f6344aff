"""The engine: admit, schedule, run, commit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from octavo.backend import BackendError, DeviceLostError, DType
from octavo.cache import BlockManager, SanitizedPool
from octavo.config import EngineConfig
from octavo.loading import EngineInfo, LoadedModel, load_failure, load_model
from octavo.outputs import RequestUpdate
from octavo.processor import EngineRequest, Limits, RequestProcessor
from octavo.request_state import RequestState
from octavo.runner import LogitRow, Runner
from octavo.sampling.inputs import SamplerOutputs
from octavo.sampling.random import derive_seed
from octavo.scheduling import Chunk, FinishReason, Plan, Request, Scheduler, SchedulerConfig

_log = logging.getLogger(__name__)


class EngineDeadError(RuntimeError):
    """The device is lost, and the engine cannot go on."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The state now, and counters since the start. kv_cache_usage: part of the blocks in use, 0 to 1."""

    num_running: int
    num_waiting: int
    num_preemptions: int
    kv_cache_usage: float
    kv_allocated_slots: int
    kv_used_slots: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    prompt_tokens: int
    generation_tokens: int
    steps: int
    last_step_tokens: int
    requests_finished: Mapping[str, int]  # by the finish reason of their first completion


class Engine:
    """Runs requests on one model. Calls come from one thread; `step` is called while `has_work`."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        info = loaded.info
        self.info: EngineInfo = info
        self.tokenizer = loaded.tokenizer
        limits = Limits(info.max_model_len, info.vocab_size, info.max_num_seqs)
        self.processor = RequestProcessor(loaded.tokenizer, limits)
        num_blocks = loaded.cache.num_blocks
        self._sanitized = SanitizedPool(num_blocks) if config.sanitize else None
        self._blocks = BlockManager(num_blocks, info.block_size, config.enable_prefix_caching, pool=self._sanitized)
        self._scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=info.max_num_seqs,
                max_num_batched_tokens=info.max_num_batched_tokens,
                max_model_len=info.max_model_len,
                max_waiting=config.max_waiting,
            ),
            self._blocks,
        )
        try:
            self._runner = Runner(loaded.device, loaded.model, loaded.weights, loaded.cache)
        except BackendError:
            loaded.device.close()
            raise
        except Exception as error:
            loaded.device.close()
            raise load_failure(loaded.device, error) from error
        self._config = config
        self._states: dict[str, RequestState] = {}
        self._ended: list[RequestUpdate] = []  # ended outside a step; reported by the next one
        self._numbers = count()
        self._counters: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._last_step_tokens = 0

    @classmethod
    def from_config(cls, config: EngineConfig, progress: Callable[[str, float], None] | None = None) -> Engine:
        """Find the model, open the backend, load the weights, size the KV cache.

        progress is called with what is being done and how much of it is done, 0 to 1. Raises OctavoError or
        octavo.backend.BackendError.
        """
        return cls(load_model(config, progress), config)

    # ------------------------------------------------------------------------------------------------- the loop

    def add(self, request: EngineRequest) -> None:
        """Queue a request that `processor` made.

        Raises QueueFullError, or InvalidRequestError for an id in use or a request larger than the KV cache.
        """
        params = request.params
        seed = derive_seed(self._config.seed, next(self._numbers)) if params.seed is None else params.seed
        scheduled = Request(
            request_id=request.request_id,
            prompt_token_ids=request.prompt_token_ids,
            max_tokens=params.max_tokens or 1,
            n=params.n,
            priority=request.priority,
            arrival_time=request.arrival_time,
            cache_salt=request.cache_salt,
            read_prefix_cache=params.prompt_logprobs is None,
            params=params,
            seeds=tuple(derive_seed(seed, index) for index in range(params.n)),
        )
        state = RequestState(
            request, scheduled, self.tokenizer, frozenset(self.info.eos_token_ids), self.info.vocab_size
        )
        self._scheduler.add(scheduled)
        self._states[request.request_id] = state

    def step(self) -> list[RequestUpdate]:
        """One step of the model; returns what each request gained. Nothing to do gives an empty list.

        Raises EngineDeadError when the device is lost.
        """
        updates, self._ended = self._ended, []
        plan = self._scheduler.schedule()
        if self._sanitized is not None:
            self._runner.poison(self._sanitized.take_abandoned(plan.copies), DType(self.info.dtype))
        if plan.chunks:
            updates += self._run(plan)
            self._counters["steps"] += 1
            self._counters["preemptions"] += len(plan.preempted)
            self._last_step_tokens = plan.num_tokens
        if self._config.check_integrity:
            self.check_integrity()
        return updates

    def abort(self, request_id: str) -> bool:
        """End a request and free its blocks; its last update has the finish reason "abort". False if it is not here."""
        state = self._states.get(request_id)
        if state is None:
            return False
        self._scheduler.abort(request_id)
        self._ended.append(self._end(state, FinishReason.ABORT))
        return True

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._ended)

    @property
    def queue_room(self) -> int:
        """Requests that may still be queued before `add` refuses."""
        # Preempted sequences wait in the same queue and may fill it beyond its cap.
        return max(0, self._config.max_waiting - self._scheduler.num_waiting)

    # ---------------------------------------------------------------------------------------------- parts of a step

    def _run(self, plan: Plan) -> list[RequestUpdate]:
        """Run a plan and commit it. If it fails its chunks run one by one, so that only the requests at fault end."""
        rows = self._rows(plan)
        try:
            outputs = self._runner.run(plan, [row for part in rows for row in part])
        except Exception as error:
            self._require_device(error)
            if len(plan.chunks) == 1:
                return [self._fail(plan.chunks[0], error)]
            return self._run_one_by_one(plan, error)
        return self._commit(plan, rows, outputs)

    def _run_one_by_one(self, plan: Plan, error: Exception) -> list[RequestUpdate]:
        _log.warning("A step of %d chunks failed; they run one by one: %s", len(plan.chunks), error)
        updates: list[RequestUpdate] = []
        try:
            self._runner.copy(plan.copies)
        except Exception as copying:
            self._require_device(copying)
            # Whose blocks were not copied cannot be told any more: nobody of this step may go on with wrong ones.
            for chunk in plan.chunks:
                if not chunk.sequence.is_finished:
                    updates.append(self._fail(chunk, copying))
            return updates
        for part in plan.one_by_one():
            if not part.chunks[0].sequence.is_finished:
                updates += self._run(part)
        return updates

    def _require_device(self, error: Exception) -> None:
        """Raises EngineDeadError when what failed was the device itself and not only this step."""
        if isinstance(error, DeviceLostError) or not self._runner.alive():
            raise EngineDeadError(f"the device is lost: {type(error).__name__}: {error}") from error

    def _rows(self, plan: Plan) -> list[list[LogitRow]]:
        """The logits each chunk wants, chunk by chunk."""
        rows, first_token = [], 0
        for chunk in plan.chunks:
            rows.append(self._state(chunk).rows(chunk, first_token))
            first_token += chunk.count
        return rows

    def _commit(self, plan: Plan, rows: list[list[LogitRow]], outputs: SamplerOutputs) -> list[RequestUpdate]:
        touched: dict[str, RequestState] = {}
        first_row = 0
        failed: list[RequestUpdate] = []
        for chunk, part in zip(plan.chunks, rows, strict=True):
            stop = first_row + len(part)
            if not chunk.sequence.is_finished:  # a sibling's failure may have ended it just now
                state = self._state(chunk)
                try:
                    self._commit_chunk(chunk, state, outputs, range(first_row, stop))
                    if part:
                        touched[state.request.request_id] = state
                except Exception as error:  # whatever it is, it is this request's alone
                    failed.append(self._fail(chunk, error))
                    touched.pop(state.request.request_id, None)
            first_row = stop
        return failed + [self._take(state) for state in touched.values()]

    def _commit_chunk(self, chunk: Chunk, state: RequestState, outputs: SamplerOutputs, rows: range) -> None:
        sampled = [int(token) for token in outputs.token_ids[rows.stop - chunk.samples : rows.stop]]
        received = self._scheduler.advance(chunk, sampled)
        if received and not state.started:
            self._counters["prompt_tokens"] += len(state.request.prompt_token_ids)
        self._counters["generation_tokens"] += len(received)
        for sequence, reason in state.commit(chunk, rows, outputs, received):
            self._scheduler.finish(sequence, reason)

    def _fail(self, chunk: Chunk, error: Exception) -> RequestUpdate:
        state = self._state(chunk)
        traceback = None if isinstance(error, BackendError) else error  # a backend's own sentence says enough
        _log.error("Request %s failed: %s", state.request.request_id, error, exc_info=traceback)
        self._scheduler.abort(state.request.request_id)
        return self._end(state, FinishReason.ERROR, f"It could not be computed: {type(error).__name__}: {error}")

    def _end(self, state: RequestState, reason: FinishReason, error: str | None = None) -> RequestUpdate:
        state.end(reason)
        return self._take(state, error)

    def _take(self, state: RequestState, error: str | None = None) -> RequestUpdate:
        update = state.take(error)
        if update.finished:
            del self._states[update.request_id]
            self._reasons[state.finish_reason] += 1
        return update

    def _state(self, chunk: Chunk) -> RequestState:
        return self._states[chunk.sequence.request.request_id]

    # --------------------------------------------------------------------------------------------------- watching

    def stats(self) -> EngineStats:
        cache = self._blocks.stats()
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_preemptions=self._counters["preemptions"],
            kv_cache_usage=cache.used_blocks / max(1, cache.total_blocks),
            kv_allocated_slots=cache.allocated_slots,
            kv_used_slots=cache.used_slots,
            prefix_cache_queries=cache.prefix_queries,
            prefix_cache_hits=cache.prefix_hits,
            prompt_tokens=self._counters["prompt_tokens"],
            generation_tokens=self._counters["generation_tokens"],
            steps=self._counters["steps"],
            last_step_tokens=self._last_step_tokens,
            requests_finished=dict(self._reasons),
        )

    def check_integrity(self) -> None:
        """Raises octavo.cache.IntegrityError if blocks and requests do not agree."""
        self._scheduler.check_integrity()

    def close(self) -> None:
        """Give back the device's memory; the engine cannot be used any more."""
        self._runner.close()

    def reset_prefix_cache(self) -> None:
        """Forget every shared prefix."""
        self._blocks.reset_prefix_cache()
