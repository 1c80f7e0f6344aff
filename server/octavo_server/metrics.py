"""Prometheus metrics under vLLM's names, with the prefix `octavo:` in place of `vllm:`.

Dashboards move over by renaming the prefix. Counters that the engine keeps are read from its latest
statistics at scrape time; latencies are observed here, request by request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.engine import EngineStats
from octavo.outputs import RequestUpdate
from octavo.processor import EngineRequest

PREFIX = "octavo:"

_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.08,
    0.15,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.5,
    5.0,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class Metrics:
    """One registry, labelled with the served model's name."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats | None]) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._registry.register(_EngineCollector(model_name, stats))
        self._time_to_first_token = self._histogram("time_to_first_token_seconds", "Arrival to first token.")
        self._inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens of one request.")
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.")
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to first step.")
        self._prefill = self._histogram("request_prefill_time_seconds", "First step to first token.")
        self._decode = self._histogram("request_decode_time_seconds", "First token to last.")
        self._iteration = self._histogram("iteration_tokens_total", "Tokens processed in one step.", _TOKENS)
        self._prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens of one request.", _TOKENS)
        self._generated = self._histogram("request_generation_tokens", "Tokens one request generated.", _TOKENS)
        self._responses = Counter(
            PREFIX + "http_responses",
            "HTTP responses by route and status.",
            ("route", "status"),
            registry=self._registry,
        )

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self._registry)

    def observe_step(self, stats: EngineStats) -> None:
        self._iteration.observe(stats.last_step_tokens)

    def observe_response(self, route: str, status: int) -> None:
        self._responses.labels(route, str(status)).inc()

    def meter(self, request: EngineRequest) -> RequestMeter:
        return RequestMeter(self, request)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        family = Histogram(PREFIX + name, text, ("model_name",), buckets=buckets, registry=self._registry)
        return family.labels(self._model_name)


class RequestMeter:
    """Turns the updates of one request into observations."""

    def __init__(self, metrics: Metrics, request: EngineRequest) -> None:
        self._metrics = metrics
        self._arrival = request.arrival_time
        self._prompt_tokens = len(request.prompt_token_ids)
        self._generated = 0
        self._latest: float | None = None

    def observe(self, update: RequestUpdate) -> None:
        metrics = self._metrics
        now = time.time()
        new = sum(len(sequence.token_ids) for sequence in update.sequences)
        if new:
            if self._latest is None:
                metrics._time_to_first_token.observe(max(0.0, now - self._arrival))
            else:
                metrics._inter_token.observe(max(0.0, now - self._latest))
            self._latest = now
            self._generated += new
        if update.finished and update.error is None:
            metrics._prompt_tokens.observe(self._prompt_tokens)
            metrics._generated.observe(self._generated)
            self._observe_phases(update)

    def _observe_phases(self, update: RequestUpdate) -> None:
        times = update.metrics
        if times is None or times.finished_time is None:
            return
        metrics = self._metrics
        metrics._e2e.observe(max(0.0, times.finished_time - times.arrival_time))
        if times.first_scheduled_time is not None:
            metrics._queue.observe(max(0.0, times.first_scheduled_time - times.arrival_time))
            if times.first_token_time is not None:
                metrics._prefill.observe(max(0.0, times.first_token_time - times.first_scheduled_time))
                metrics._decode.observe(max(0.0, times.finished_time - times.first_token_time))


class _EngineCollector(Collector):
    """The engine's own counters and gauges, as of its latest step."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats | None]) -> None:
        self._model_name = model_name
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        if stats is None:
            return
        gauges = {
            "num_requests_running": ("Requests in the running batch.", stats.num_running),
            "num_requests_waiting": ("Requests that wait for their first or next step.", stats.num_waiting),
            "kv_cache_usage_perc": ("Share of the KV blocks in use; 1 is all.", stats.kv_cache_usage),
            "kv_cache_allocated_slots": ("KV slots in blocks that requests hold.", stats.kv_allocated_slots),
            "kv_cache_used_slots": (
                "KV slots that hold a token; the rest of the allocated ones is waste.",
                stats.kv_used_slots,
            ),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=("model_name",))
            gauge.add_metric((self._model_name,), value)
            yield gauge
        counters = {
            "num_preemptions": ("Preemptions.", stats.num_preemptions),
            "prefix_cache_queries": (
                "Prompt tokens looked up in the prefix cache.",
                stats.prefix_cache_queries,
            ),
            "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            "prompt_tokens": ("Prompt tokens processed.", stats.prompt_tokens),
            "generation_tokens": ("Tokens generated.", stats.generation_tokens),
        }
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(PREFIX + name, text, labels=("model_name",))
            counter.add_metric((self._model_name,), value)
            yield counter
        success = CounterMetricFamily(
            PREFIX + "request_success",
            "Requests that ended, by reason.",
            labels=("model_name", "finished_reason"),
        )
        for reason, count in stats.requests_finished.items():
            success.add_metric((self._model_name, reason), count)
        yield success
