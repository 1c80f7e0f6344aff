"""Which sequences run in the next step, on how many of their tokens, and who waits."""

from __future__ import annotations

from octavo.scheduling.config import SchedulerConfig
from octavo.scheduling.errors import RequestTooLargeError
from octavo.scheduling.plan import Chunk, Plan
from octavo.scheduling.request import FinishReason, Request, Sequence, Status
from octavo.scheduling.scheduler import Scheduler

__all__ = [
    "Chunk",
    "FinishReason",
    "Plan",
    "Request",
    "RequestTooLargeError",
    "Scheduler",
    "SchedulerConfig",
    "Sequence",
    "Status",
]
