"""The engine: admit, schedule, run, commit."""

from __future__ import annotations

import logging
from collections import Counter, abc, deque
from dataclasses import dataclass
from itertools import count

from octavo.backend import BackendError, DeviceLostError, DType
from octavo.cache import BlockManager, SanitizedPool
from octavo.config import EngineConfig
from octavo.loading import EngineInfo, LoadedModel, Progress, load_failure, load_model
from octavo.outputs import RequestUpdate
from octavo.processor import EngineRequest, Limits, RequestProcessor
from octavo.request_state import RequestState
from octavo.runner import LaunchedStep, LogitRow, Runner
from octavo.sampling.inputs import SamplerOutputs
from octavo.sampling.random import derive_seed
from octavo.scheduling import Chunk, FinishReason, Plan, Request, Scheduler, SchedulerConfig, Sequence, Status
from octavo.warm_up import warm_up

_log = logging.getLogger(__name__)


class EngineDeadError(DeviceLostError):
    """The device is lost, and the engine cannot go on: a sentence that says why, the same one at every call."""


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
    requests_finished: abc.Mapping[str, int]  # by the finish reason of their first completion


@dataclass(frozen=True, slots=True)
class _StepInFlight:
    """A step on the device. num_rows: of its outputs' rows, those of each chunk.

    needed: whether nothing can be planned before its tokens are known on the host.
    """

    plan: Plan
    num_rows: abc.Sequence[int]
    launched: LaunchedStep
    needed: bool


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
            self._runner = Runner(loaded.device, loaded.model, loaded.weights, loaded.cache, info.max_num_seqs)
        except BackendError:
            loaded.device.close()
            raise
        except Exception as error:
            loaded.device.close()
            raise load_failure(loaded.device, error) from error
        self._config = config
        self._states: dict[str, RequestState] = {}
        self._updates: list[RequestUpdate] = []  # made, and not yet returned by a step
        self._numbers = count()
        self._counters: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._last_step_tokens = 0
        self._in_flight: deque[_StepInFlight] = deque()  # the oldest first; the scheduler counts it as launched
        self._suspects: set[Sequence] = set()  # of a step that failed on the device: one of them may be at fault
        self._death: str | None = None  # why the engine is dead, once it is

    @classmethod
    def from_config(cls, config: EngineConfig, progress: Progress | None = None) -> Engine:
        """Find the model, open the backend, load the weights, size the KV cache, warm the device up.

        progress is called with what is being done and how much of it is done, 0 to 1. Raises OctavoError or
        octavo.backend.BackendError.
        """
        engine = cls(load_model(config, progress), config)
        try:
            engine.warm_up(progress)
        except BaseException:
            engine.close()
            raise
        return engine

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile and record what requests will need, where the device is one that gains by it.

        Before the first request; `from_config` does it. Raises BackendError where the device is lost: the engine can
        then only be closed.
        """
        if self.wants_warm_up and self._config.warm_up_seconds > 0:
            warm_up(self._runner, self.info, self._config.warm_up_seconds, progress)

    # ------------------------------------------------------------------------------------------------- the loop

    def add(self, request: EngineRequest) -> None:
        """Queue a request that `processor` made.

        Raises QueueFullError, or InvalidRequestError for an id in use or a request larger than the KV cache;
        EngineDeadError once the device was lost.
        """
        self.check_alive()
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

        On an asynchronous device this launches a step while the one before runs, and returns what the one before gave:
        the host plans and packs, commits and detokenizes in the device's shadow. Raises EngineDeadError when the device
        is lost; what requests had gained by then is returned first, and the next call raises.
        """
        self.check_alive()
        try:
            self._step()
        except EngineDeadError:
            if not self._updates:
                raise
        updates, self._updates = self._updates, []
        return updates

    def abort(self, request_id: str) -> bool:
        """End a request and free its blocks; its last update has the finish reason "abort". False if it is not here."""
        state = self._states.get(request_id)
        if state is None:
            return False
        self._scheduler.abort(request_id)
        self._updates.append(self._end(state, FinishReason.ABORT))
        return True

    def check_alive(self) -> None:
        """Raises EngineDeadError once the device was lost; does not ask the device."""
        if self._death is not None:
            raise EngineDeadError(self._death)

    @property
    def compiling(self) -> bool:
        """Whether the device compiles now. May be asked by any thread."""
        return self._runner.compiling

    @property
    def wants_warm_up(self) -> bool:
        """Whether steps are compiled or recorded when they are first run: the first of a kind is slow then."""
        return self._runner.wants_warm_up

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do; a step that is still in flight for nobody waits until it has."""
        return self._scheduler.has_work or bool(self._updates)

    @property
    def queue_room(self) -> int:
        """Requests that may still be queued before `add` refuses."""
        # Preempted sequences wait in the same queue and may fill it beyond its cap.
        return max(0, self._config.max_waiting - self._scheduler.num_waiting)

    # ---------------------------------------------------------------------------------------------- parts of a step

    def _step(self) -> None:
        if self._in_flight and self._in_flight[0].needed:
            self._land()
        plan = self._plan()
        self._launch(plan)
        ahead = 1 if plan.chunks and self._runner.asynchronous else 0  # steps that may still run when this one returns
        while len(self._in_flight) > ahead:
            self._land()
        if self._config.check_integrity:
            self.check_integrity()

    def _plan(self) -> Plan:
        plan = self._scheduler.schedule()
        self._counters["preemptions"] += len(plan.preempted)
        if self._sanitized is not None:
            try:
                self._runner.poison(self._sanitized.take_abandoned(plan.copies), DType(self.info.dtype))
            except Exception as error:
                self._require_device(error)
                raise
        return plan

    def _launch(self, plan: Plan) -> None:
        """Put a plan on the device. Where that fails the plan is run at once in parts."""
        if not plan.chunks:
            return
        self._counters["steps"] += 1
        self._last_step_tokens = plan.num_tokens
        if self._suspects:
            self._run_one_by_one(plan)
            return
        rows, counts = self._rows(plan)
        try:
            launched = self._runner.launch(plan, rows)
        except Exception as error:
            self._require_device(error)
            _log.warning("A step of %d chunks failed; they run one by one: %s", len(plan.chunks), error)
            if self._in_flight:
                self._land()  # the step before was launched in good order
            self._run_one_by_one(plan)
            return
        needed = any(row.spec.sampling.follows_output for row in rows if row.lane >= 0)
        self._in_flight.append(_StepInFlight(plan, counts, launched, needed))
        if len(self._in_flight) == 1:
            self._scheduler.launched(plan)

    def _land(self) -> None:
        """Wait for the oldest step in flight and commit it; the next one, if there is one, takes its place."""
        step = self._in_flight[0]
        try:
            outputs = self._runner.collect(step.launched)
        except Exception as error:
            self._require_device(error)
            self._start_over(error)
            return
        self._in_flight.popleft()  # not before: an interrupted wait begins again
        self._commit(step.plan, step.num_rows, outputs)
        if self._in_flight:
            self._scheduler.launched(self._in_flight[0].plan)

    def _start_over(self, error: Exception) -> None:
        """A step failed after others were built upon it: all that runs goes back to the queue and is computed again.

        As long as one of these suspects has not got its next token, chunks run one by one: it shows whose fault it was.
        """
        _log.warning("A step failed on the device; what was running is computed again, one by one: %s", error)
        self._in_flight.popleft()
        while self._in_flight:
            try:
                self._runner.collect(self._in_flight.popleft().launched)
            except Exception as further:
                self._require_device(further)
        self._suspects.update(self._scheduler.restart())

    def _run_one_by_one(self, plan: Plan) -> None:
        """Run each chunk of a plan alone and to its end, so that only the requests at fault end."""
        try:
            self._runner.copy(plan.copies)
        except Exception as error:
            self._require_device(error)
            # Whose blocks were not copied cannot be told any more: nobody of this step may go on with wrong ones.
            for chunk in plan.chunks:
                if chunk.sequence.is_running:
                    self._fail(chunk, error)
            return
        for part in plan.one_by_one():
            if part.chunks[0].sequence.is_running:
                self._run_alone(part)
        self._suspects = {sequence for sequence in self._suspects if not sequence.is_finished}

    def _run_alone(self, plan: Plan) -> None:
        chunk, (rows, counts) = plan.chunks[0], self._rows(plan)
        try:
            outputs = self._runner.collect(self._runner.launch(plan, rows))
        except Exception as error:
            self._require_device(error)
            self._fail(chunk, error)
            return
        self._scheduler.launched(plan)
        if chunk.samples:
            self._suspects.discard(chunk.sequence)
        self._commit(plan, counts, outputs)

    def _require_device(self, error: Exception) -> None:
        """Raises EngineDeadError when what failed was the device itself and not only this step.

        The engine is dead from then on. Steps in flight are dropped: to wait for them would take as long once more.
        """
        if isinstance(error, DeviceLostError) or not self._runner.alive():
            reason = str(error) if isinstance(error, DeviceLostError) else f"{type(error).__name__}: {error}"
            self._death = f"The device is lost: {reason.rstrip('.')}."
            self._in_flight.clear()
            raise EngineDeadError(self._death) from error

    def _rows(self, plan: Plan) -> tuple[list[LogitRow], list[int]]:
        """The logits that the plan's chunks want, and how many each of them does."""
        rows: list[LogitRow] = []
        counts = []
        first_token = 0
        before, states = 0, self._states
        for chunk in plan.chunks:
            states[chunk.sequence.request.request_id].add_rows(rows, chunk, first_token)
            counts.append(len(rows) - before)
            before = len(rows)
            first_token += chunk.count
        return rows, counts

    def _commit(self, plan: Plan, num_rows: abc.Sequence[int], outputs: SamplerOutputs) -> None:
        """Take what a step gave. num_rows: of the outputs' rows, those of each chunk."""
        token_ids: list[int] = outputs.token_ids.tolist()
        touched: dict[str, RequestState] = {}
        stop = generated = 0
        states = self._states
        for chunk, own_rows in zip(plan.chunks, num_rows, strict=True):
            start, stop = stop, stop + own_rows
            sequence = chunk.sequence
            if own_rows == 0 or (sequence.status is Status.FINISHED and chunk.is_wasted):
                continue
            request_id = sequence.request.request_id
            state = states[request_id]
            try:
                sampled = token_ids[stop - chunk.samples : stop]
                generated += self._commit_chunk(chunk, state, outputs, start, stop, sampled)
                touched[request_id] = state
            except Exception as error:  # whatever it is, it is this request's alone
                self._fail(chunk, error)
                touched.pop(request_id, None)
        self._counters["generation_tokens"] += generated
        self._updates += [self._take(state) for state in touched.values()]

    def _commit_chunk(
        self, chunk: Chunk, state: RequestState, outputs: SamplerOutputs, row: int, stop: int, token_ids: list[int]
    ) -> int:
        """Returns how many sequences received a token."""
        received = self._scheduler.advance(chunk, token_ids)
        if received and not state.started:
            self._counters["prompt_tokens"] += len(state.request.prompt_token_ids)
        for sequence, reason in state.commit(chunk, outputs, row, stop, token_ids):
            self._scheduler.finish(sequence, reason)
        return len(received)

    def _fail(self, chunk: Chunk, error: Exception) -> None:
        state = self._state(chunk)
        traceback = None if isinstance(error, BackendError) else error  # a backend's own sentence says enough
        _log.error("Request %s failed: %s", state.request.request_id, error, exc_info=traceback)
        self._scheduler.abort(state.request.request_id)
        reason = f"It could not be computed: {type(error).__name__}: {error}"
        self._updates.append(self._end(state, FinishReason.ERROR, reason))

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
        self._in_flight.clear()
        self._runner.close()

    def reset_prefix_cache(self) -> None:
        """Forget every shared prefix."""
        self._blocks.reset_prefix_cache()
