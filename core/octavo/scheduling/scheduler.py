"""Continuous batching: every step, which sequences compute which of their tokens.

Iteration-level scheduling (Orca, Yu et al. 2022) over paged memory (PagedAttention, Kwon et al. 2023) with
chunked prefill (Sarathi-Serve, Agrawal et al. 2024).
"""

from __future__ import annotations

import time
from collections import abc

from octavo.cache import BlockManager
from octavo.cache.integrity import require
from octavo.errors import InvalidRequestError, QueueFullError
from octavo.scheduling.config import SchedulerConfig
from octavo.scheduling.draft import Draft
from octavo.scheduling.errors import RequestTooLargeError
from octavo.scheduling.plan import Chunk, Plan
from octavo.scheduling.ranked_queue import RankedQueue
from octavo.scheduling.request import FinishReason, Request, Sequence, Status

_FINISHED = Status.FINISHED  # looked up once: what follows runs for every sequence of every step

HEADROOM_DIVISOR = 16
"""The blocks kept free for running sequences to grow are at most this part of the pool."""


class Scheduler:
    """Owns the requests: the waiting sequences and the running ones, both ordered by (priority, arrival).

    The rules, in the order in which a step applies them:

    1. Every running sequence that is one token behind decodes. The rest of the token budget goes to running
       prefills, best ranked first, in chunks; what is left then admits waiting sequences.
    2. A running sequence that cannot get a block preempts the worst-ranked running one, itself last of all. A
       preempted sequence keeps its tokens, goes back to the queue and is recomputed, from the prefix cache
       where that still has it.
    3. Waiting sequences are admitted strictly in order, and never preempt: one that ranks before a running
       sequence waits until there is room. Nobody is admitted in a step that preempted.
    4. Admission needs room for all tokens known so far, for what running prefills still need, and a headroom
       of one block for every running sequence (at most a sixteenth of the pool), so that a newcomer is not
       preempted at once. With nothing running it needs none of that: a lone request is always admitted.

    Running sequences are planned in order of rank, so the best-ranked one always gets its blocks, a planned
    sequence is never preempted by a later one, and every admitted request finishes (as long as nobody runs
    past max_tokens).

    A step is `plan = schedule()`, then `launched(plan)`, then `advance(chunk, tokens)` for each chunk, then
    `finish` for those that are done. One plan may be in flight when the next is made: launched, and not advanced.
    Its tokens count as computed, which they will be before anything that is queued behind it runs, and the token
    it samples for a sequence is *pending*: it has a position and a slot, and the next plan computes it, before
    anybody on the host knows which token it is. The next plan is launched once this one was advanced; so no
    sequence has two pending tokens, and full blocks are offered to others only when their tokens are known.

    What is known ahead is used: a sequence whose pending token is its last is not planned again. Where the token
    turns out to end it (end of sequence, a stop string), the plan in flight computes a row for nobody. Its blocks
    are free at once all the same: who gets them next writes to them in a later step, so after that row.

    The cost of a step is a few microseconds a running sequence; nothing depends on the lengths of contexts.
    `clock` gives seconds for `first_scheduled_time`.
    """

    def __init__(
        self, config: SchedulerConfig, blocks: BlockManager, clock: abc.Callable[[], float] = time.time
    ) -> None:
        self.config = config
        self.blocks = blocks
        self._clock = clock
        self._requests: dict[str, Request] = {}
        self._waiting = RankedQueue()
        self._running = RankedQueue()
        self._num_added = 0
        self._num_admitted = 0
        self._free_lanes = list(range(config.max_num_seqs - 1, -1, -1))
        """A lane is a seat of max_num_seqs: each running sequence has one, and each sibling that will fork from one."""
        self._stalled: Sequence | None = None
        """Head of the queue that had no room. It is not tried again (a walk over its prompt at every step)
        before something was freed, or prefilled and so perhaps shared: decodes alone only take room away.
        """

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def num_running(self) -> int:
        """Running sequences."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue; a request that was never run counts once."""
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a new request.

        Raises QueueFullError when the queue is at its cap, RequestTooLargeError when the request could never
        run here, and InvalidRequestError when its id is in use.
        """
        if request.request_id in self._requests:
            raise InvalidRequestError(
                f"A request with the id {request.request_id!r} is running already.", param="request_id"
            )
        self._check_size(request)
        if len(self._waiting) >= self.config.max_waiting:
            raise QueueFullError(
                f"{len(self._waiting)} requests are waiting, and max_waiting is {self.config.max_waiting}; "
                "try again later."
            )
        self._num_added += 1
        for sequence in request.sequences:
            sequence.rank = (request.priority, request.arrival_time, self._num_added, sequence.index)
            sequence.block_table = self.blocks.table(sequence.token_ids, request.cache_salt, request.adapter)
        self._requests[request.request_id] = request
        self._waiting.add(request.sequences[0])

    def abort(self, request_id: str) -> bool:
        """Finish whatever is left of a request, wherever it is. False when there is no such request (any
        more).
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        for sequence in request.sequences:
            self.finish(sequence, FinishReason.ABORT)
        return True

    def schedule(self) -> Plan:
        """The next step. Empty only when there is no work, or none before the plan in flight has given its tokens."""
        draft = Draft(self.config.max_num_batched_tokens)
        self._continue_running(draft)
        if not draft.preempted:
            self._admit_waiting(draft)
        self.blocks.settle()
        return draft.plan()

    def launched(self, plan: Plan) -> None:
        """Record that a plan is on the device, and that the plan before it was advanced.

        Siblings that take their first tokens here are forked. Sequences that were finished since the plan was made
        are passed over.
        """
        computed = self.blocks.computed
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.status is _FINISHED:
                continue
            count, samples = chunk.count, chunk.samples
            computed(sequence.block_table, chunk.start + count)
            if count > 1:
                self._stalled = None
            if samples == 1:
                sequence.num_pending = 1
            elif samples:
                self._fork(sequence.request)

    def advance(self, chunk: Chunk, token_ids: abc.Sequence[int]) -> abc.Sequence[Sequence]:
        """Record what was sampled from a chunk of the plan in flight; returns who received a token, in order.

        token_ids: `chunk.samples` of them, one for each of its receivers. One that was finished since receives nothing;
        one that was preempted does. Raises ValueError for a wrong number of tokens or an outdated chunk.
        """
        if len(token_ids) != chunk.samples:
            raise ValueError(
                f"{chunk.samples} tokens were to be sampled for {chunk.sequence!r}, and {len(token_ids)} came."
            )
        if chunk.samples == 1:  # nearly every chunk, and so worth lines of its own
            return [chunk.sequence] if self._receive(chunk, chunk.sequence, token_ids[0]) else []
        receivers = zip(chunk.receivers, token_ids, strict=False)  # a chunk may sample nothing
        return [sequence for sequence, token in receivers if self._receive(chunk, sequence, token)]

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take a sequence out and free its blocks; nothing happens to one that is finished.

        When sequence 0 ends before its siblings were forked, they end with it.
        """
        if sequence.is_finished:
            return
        request = sequence.request
        if sequence.status is Status.RUNNING:
            self._leave(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        self._stalled = None
        ending = request.sequences if sequence.index == 0 and not request.forked else (sequence,)
        for each in ending:
            if not each.is_finished:
                each.status = Status.FINISHED
                each.finish_reason = reason
        if request.is_finished:
            del self._requests[request.request_id]

    def restart(self) -> tuple[Sequence, ...]:
        """Take the blocks of all running sequences and queue them to be computed again; returns them.

        For when a plan failed that had been launched: of what it wrote, and of what was computed from that since,
        nothing can be trusted, so the prefix cache is forgotten too. Pending tokens will not come.
        """
        restarted = tuple(self._running.items)
        for sequence in restarted:
            self._requeue(sequence)
        for request in self._requests.values():
            for sequence in request.sequences:
                sequence.num_pending = 0
        self.blocks.reset_prefix_cache()
        return restarted

    def _check_size(self, request: Request) -> None:
        config, prompt = self.config, len(request.prompt_token_ids)
        if request.n > config.max_num_seqs:
            raise RequestTooLargeError(
                f"n is {request.n}; at most {config.max_num_seqs} sequences run at a time (max_num_seqs).",
                param="n",
            )
        # The last token is sampled and never computed, so it takes no slot.
        largest = min(config.max_model_len, self.blocks.capacity + 1)
        if prompt + request.max_tokens > largest:
            limit = "max_model_len" if largest == config.max_model_len else "the KV cache"
            raise RequestTooLargeError(
                f"The prompt has {prompt} tokens and max_tokens is {request.max_tokens}, together "
                f"{prompt + request.max_tokens}; {limit} allows {largest}.",
                param="max_tokens" if prompt < largest else "prompt",
                code="context_length_exceeded",
            )

    def _continue_running(self, draft: Draft) -> None:
        running = self._running.items
        behind = list(map(_behind, running))
        draft.budget -= behind.count(1)
        allocate, decodes = self.blocks.allocate, draft.decodes
        position = 0
        while position < len(running):  # shrinks at its end where a sequence preempts
            sequence, missing = running[position], behind[position]
            position += 1
            if missing == 1:
                table = sequence.block_table
                end = table.num_computed + 1
                if (copies := allocate(table, end)) is None:
                    self._plan_running(draft, sequence, 1)  # which preempts for it
                    continue
                if copies:
                    draft.copies.extend(copies)
                decodes.append(Chunk(sequence, end - 1, 1, sequence.num_samples))
                continue
            count = min(missing, draft.budget)
            if count == 0 or self._plan_running(draft, sequence, count):
                draft.budget -= count
                draft.promised += self.blocks.missing_blocks(sequence.block_table, sequence.num_tokens)

    def _plan_running(self, draft: Draft, sequence: Sequence, count: int) -> bool:
        """Plan `count` tokens of a running sequence, preempting as it must. False when it had to preempt
        itself.
        """
        table = sequence.block_table
        start = table.num_computed
        end = start + count
        copies = self.blocks.allocate(table, end)
        while copies is None:
            victim = self._running.items[-1]
            self._preempt(victim)
            draft.preempted.append(victim)
            if victim is sequence:
                return False
            copies = self.blocks.allocate(table, end)
        if copies:
            draft.copies.extend(copies)
        samples = sequence.num_samples if end == len(sequence.token_ids) + sequence.num_pending else 0
        (draft.decodes if count == 1 else draft.prefills).append(Chunk(sequence, start, count, samples))
        return True

    def _admit_waiting(self, draft: Draft) -> None:
        waiting = self._waiting.items
        while waiting and draft.budget > 0:
            sequence = waiting[0]
            if sequence is self._stalled or sequence.num_samples > len(self._free_lanes):
                return
            cached = self._begin(sequence, draft)
            if cached is None:
                self._stalled = sequence
                return
            if sequence.first_scheduled_time is None:
                sequence.first_scheduled_time = self._clock()
                sequence.num_cached_tokens = cached
            self._waiting.remove(sequence)
            for each in _lane_holders(sequence):
                each.lane = self._free_lanes.pop()
            self._run(sequence)
            count = min(len(sequence.token_ids) - cached, draft.budget)
            draft.budget -= count
            self._plan_running(draft, sequence, count)  # has its blocks: begin saw to that

    def _begin(self, sequence: Sequence, draft: Draft) -> int | None:
        spare = 0
        if self._running.items:
            seats = self.config.max_num_seqs - len(self._free_lanes)
            headroom = min(seats, self.blocks.total_blocks // HEADROOM_DIVISOR)
            spare = headroom + draft.promised
        return self.blocks.begin(sequence.block_table, spare, sequence.request.read_prefix_cache)

    def _run(self, sequence: Sequence) -> None:
        """Count a sequence that has its lane and blocks among the running ones."""
        self._num_admitted += 1
        sequence.admission = self._num_admitted
        sequence.status = Status.RUNNING
        self._running.add(sequence)

    def _receive(self, chunk: Chunk, sequence: Sequence, token: int) -> bool:
        if sequence.status is _FINISHED:
            return False
        if sequence.num_pending == 0:
            raise ValueError(f"{sequence!r} waits for no token: its chunk at {chunk.start} is not in flight.")
        sequence.num_pending = 0
        sequence.token_ids.append(token)
        return True

    def _fork(self, request: Request) -> None:
        """Let every sibling go on from the prompt with a pending token of its own; one that was finished meanwhile
        gives its lane back.
        """
        first, *siblings = request.sequences
        request.forked = True
        first.num_pending = 1
        for sibling in siblings:
            if sibling.is_finished:
                self._free_lanes.append(sibling.lane)
                sibling.lane = -1
                continue
            sibling.block_table = self.blocks.fork(first.block_table, sibling.token_ids)
            sibling.num_cached_tokens = first.num_cached_tokens
            sibling.first_scheduled_time = first.first_scheduled_time
            sibling.num_pending = 1
            self._run(sibling)

    def _preempt(self, sequence: Sequence) -> None:
        self._requeue(sequence)
        sequence.num_preemptions += 1

    def _requeue(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.status = Status.WAITING
        self._waiting.add(sequence)
        self._stalled = None

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        for each in _lane_holders(sequence):
            self._free_lanes.append(each.lane)
            each.lane = -1
        self.blocks.free(sequence.block_table)

    def check_integrity(self) -> None:
        """Raise `IntegrityError` naming the fact unless every invariant of queues, requests and blocks
        holds.
        """
        config, running, waiting = self.config, self._running.items, self._waiting.items
        require(self._running.is_sorted() and self._waiting.is_sorted(), "A queue is out of order.")
        require(
            all(sequence.status is Status.RUNNING for sequence in running),
            "A running sequence says it is not.",
        )
        require(
            all(sequence.status is Status.WAITING for sequence in waiting),
            "A waiting sequence says it is not.",
        )
        taken = [each.lane for sequence in running for each in _lane_holders(sequence)]
        require(
            sorted([*taken, *self._free_lanes]) == list(range(config.max_num_seqs)),
            f"Of {config.max_num_seqs} lanes {taken} are taken and {self._free_lanes} are free.",
        )
        alive = {s for request in self._requests.values() for s in request.sequences if not s.is_finished}
        queued = {s for s in alive if s.status is not Status.PENDING}
        require(
            queued == {*running, *waiting},
            "A sequence is in a queue without a request, or the other way round.",
        )
        for sequence in alive - queued:
            require(not sequence.request.forked, f"{sequence!r} waits for a fork that happened.")
        for request_id, request in self._requests.items():
            require(not request.is_finished, f"Request {request_id} is finished and still known.")
        for sequence in running:
            require(
                sequence.num_computed_tokens < sequence.num_tokens,
                f"{sequence!r} has nothing left to compute.",
            )
        for sequence in alive:
            require(sequence.num_pending in (0, 1), f"{sequence!r} has {sequence.num_pending} pending tokens.")
        self.blocks.check_integrity(sequence.block_table for sequence in running)


def _behind(sequence: Sequence) -> int:
    """Tokens of a running sequence that nothing computes yet; none where the pending token is its last."""
    pending = sequence.num_pending
    known = len(sequence.token_ids)
    if pending and known + pending == sequence.max_length:
        return 0
    return known + pending - sequence.block_table.num_computed


def _lane_holders(sequence: Sequence) -> tuple[Sequence, ...]:
    """Whose lanes come and go with a running sequence: its own, and its siblings' while they share the prompt."""
    return (sequence,) if sequence.request.forked else sequence.request.sequences
