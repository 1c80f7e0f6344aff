"""Metrics carry vLLM's names behind our prefix."""

from __future__ import annotations

from octavo.engine import EngineStats
from octavo.outputs import RequestMetrics, RequestUpdate, SequenceUpdate
from octavo.processor import EngineRequest
from octavo.sampling.params import SamplingParams
from octavo_server.metrics import Metrics

STATS = EngineStats(3, 2, 1, 0.25, 64, 60, 100, 40, 500, 70, 9, 16, {"stop": 4, "length": 1})


def test_engine_counters_are_read_at_scrape_time() -> None:
    text = Metrics("m", lambda: STATS).render().decode()
    for line in (
        'octavo:num_requests_running{model_name="m"} 3.0',
        'octavo:num_requests_waiting{model_name="m"} 2.0',
        'octavo:kv_cache_usage_perc{model_name="m"} 0.25',
        'octavo:num_preemptions_total{model_name="m"} 1.0',
        'octavo:prefix_cache_queries_total{model_name="m"} 100.0',
        'octavo:prefix_cache_hits_total{model_name="m"} 40.0',
        'octavo:prompt_tokens_total{model_name="m"} 500.0',
        'octavo:generation_tokens_total{model_name="m"} 70.0',
        'octavo:request_success_total{finished_reason="stop",model_name="m"} 4.0',
    ):
        assert line in text


def test_one_request_is_observed_phase_by_phase() -> None:
    metrics = Metrics("m", lambda: None)
    meter = metrics.meter(EngineRequest("r", (1, 2, 3), SamplingParams()))
    meter.observe(RequestUpdate("r", (SequenceUpdate(0, "", ()),)))
    meter.observe(RequestUpdate("r", (SequenceUpdate(0, "a", (1,)),)))
    last = RequestMetrics(10.0, 11.0, 13.0, 20.0)
    meter.observe(RequestUpdate("r", (SequenceUpdate(0, "b", (2,)),), finished=True, metrics=last))
    text = metrics.render().decode()
    for line in (
        'octavo:time_to_first_token_seconds_count{model_name="m"} 1.0',
        'octavo:inter_token_latency_seconds_count{model_name="m"} 1.0',
        'octavo:request_queue_time_seconds_sum{model_name="m"} 1.0',
        'octavo:request_prefill_time_seconds_sum{model_name="m"} 2.0',
        'octavo:request_decode_time_seconds_sum{model_name="m"} 7.0',
        'octavo:e2e_request_latency_seconds_sum{model_name="m"} 10.0',
        'octavo:request_prompt_tokens_sum{model_name="m"} 3.0',
        'octavo:request_generation_tokens_sum{model_name="m"} 2.0',
    ):
        assert line in text


def test_the_names_that_gateways_and_dashboards_ask_for_are_all_there() -> None:
    metrics = Metrics("m", lambda: STATS)
    metrics.observe_step(STATS)
    text = metrics.render().decode()
    for name in ("iteration_tokens_total", "request_success_total", "e2e_request_latency_seconds"):
        assert f"octavo:{name}" in text
