"""Decode steps as graphs: recorded when they come again, replayed, and never in the way of a step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from octavo.backend import Bucket
from octavo_torch.gpu import graphs


def test_the_first_step_is_eager_the_second_recorded_and_the_others_replayed(run: Any, runtime: Any) -> None:
    counts = []
    for seed in range(4):
        run.check(*run.launch(seed))
        counts.append((runtime.recorded, runtime.replayed))
    assert counts == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_a_replay_costs_one_upload_one_download_and_no_other_wait(run: Any, runtime: Any, traffic: Any) -> None:
    for seed in range(3):
        run.check(*run.launch(seed))
    with traffic:
        outputs, right = run.launch(7)
    assert (traffic.up, traffic.down, traffic.synchronisations) == (1, 1, 0)
    with traffic:
        run.check(outputs, right)
    assert (traffic.up, traffic.down, traffic.synchronisations) == (1, 1, 0)


def test_launching_waits_for_nothing(run: Any, runtime: Any) -> None:
    for seed in range(3):
        run.check(*run.launch(seed))
    runtime.held = True
    looks = runtime.looks
    pairs = [run.launch(seed) for seed in (10, 11)]
    # Looks at marks of idle buffers are no waits: there are as many as there are buffers.
    assert runtime.looks - looks <= 2 * len(runtime.buffers)
    runtime.finish()
    for outputs, _ in pairs:
        run.device.download(outputs.sums)
    run.check(*pairs[-1])


def test_outputs_survive_the_replay_of_the_next_step(run: Any) -> None:
    for seed in range(2):
        run.launch(seed)
    pairs = [run.launch(seed) for seed in range(20, 25)]
    for outputs, right in pairs:
        np.testing.assert_array_equal(run.device.download(outputs.token_ids), right.token_ids.numpy())
        assert torch.equal(outputs.sums, right.sums)


def test_a_bucket_whose_arrays_have_another_width_gets_a_graph_of_its_own(run: Any, runtime: Any) -> None:
    for seed, blocks in enumerate((8, 8, 16, 16, 8, 16)):
        run.check(*run.launch(seed, blocks=blocks))
    assert runtime.recorded == 2
    assert runtime.replayed == 4


def test_another_kv_cache_is_not_written_by_a_graph_of_the_first(run: Any, runtime: Any) -> None:
    for seed in range(3):
        run.check(*run.launch(seed))
    first = [layer.clone() for layer in run.kv]
    kept = run.kv
    run.kv = [layer.clone() for layer in run.kv]
    for seed in range(3, 6):
        run.check(*run.launch(seed))
    for layer, before in zip(kept, first, strict=True):
        assert torch.equal(layer, before)


def test_inputs_that_were_staged_before_the_last_ones_are_still_the_steps_inputs(run: Any) -> None:
    """Core stages and runs in turn; whoever does not still gets the right step."""
    device, make = run.device, run.make_inputs
    for seed in range(3):
        run.check(*run.launch(seed))
    first, second = (device.stage(make(seed, run.board)) for seed in (30, 31))
    right, _ = run.step(run.weights, [layer.clone() for layer in run.kv], first)
    outputs, run.kv = run.compiled(run.weights, run.kv, first)
    np.testing.assert_array_equal(device.download(outputs.token_ids), right.token_ids.numpy())
    right, _ = run.step(run.weights, [layer.clone() for layer in run.kv], second)
    outputs, run.kv = run.compiled(run.weights, run.kv, second)
    np.testing.assert_array_equal(device.download(outputs.token_ids), right.token_ids.numpy())


NOT_POSSIBLE = RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("error", [NOT_POSSIBLE, torch.OutOfMemoryError("full")])
def test_a_recording_that_fails_leaves_the_step_eager_and_says_so_once(
    run: Any, runtime: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.fail = error
    with caplog.at_level(logging.WARNING):
        for seed in range(5):
            run.check(*run.launch(seed))
    assert runtime.recorded == 0
    assert len(caplog.records) == 1
    assert "8 sequences" in caplog.text
    assert str(error) in caplog.text


def test_a_recording_that_runs_out_of_memory_is_the_last(start: Any, device: Any, runtime: Any) -> None:
    runtime.fail = torch.OutOfMemoryError("full")
    first, second = start(device), start(device, Bucket(8, 8, 8, 8, True, "another"))
    for seed in range(4):
        first.check(*first.launch(seed))
        second.check(*second.launch(seed))
    assert runtime.recorded == 0


def test_graphs_beyond_the_budget_are_not_recorded_while_the_others_are_in_use(
    start: Any, open_device: Callable[..., Any], runtime: Any
) -> None:
    runtime.graph_memory = 1 << 20
    device = open_device(graph_memory=str(2 * runtime.graph_memory / runtime.total))
    runs = [start(device, Bucket(8, 8, 8, 8, True, variant)) for variant in range(4)]
    for seed in range(4):
        for run in runs:
            run.check(*run.launch(seed))
    assert runtime.recorded == 2


def test_an_idle_graph_makes_room(
    start: Any, open_device: Callable[..., Any], runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "IDLE", 5)
    runtime.graph_memory = 1 << 20
    device = open_device(graph_memory=str(runtime.graph_memory / runtime.total))
    first, second = (start(device, Bucket(8, 8, 8, 8, True, variant)) for variant in range(2))
    for seed in range(3):
        first.check(*first.launch(seed))
    for seed in range(8):
        second.check(*second.launch(seed))
    assert runtime.recorded == 2  # once the first had been idle for five steps
    replayed = runtime.replayed
    for seed in range(2, 5):
        first.check(*first.launch(seed))
    assert runtime.replayed == replayed  # it has to wait for its turn again


def test_graphs_can_be_switched_off(start: Any, open_device: Callable[..., Any], runtime: Any) -> None:
    device = open_device(graphs="off")
    assert not device.info.capabilities.graph_capture
    run = start(device)
    for seed in range(3):
        run.check(*run.launch(seed))
    assert runtime.recorded == 0


def test_steps_of_any_size_and_prefills_are_not_recorded(start: Any, device: Any, runtime: Any) -> None:
    for bucket in (Bucket(0, 0, 0, 0, True), Bucket(8, 8, 8, 8, False)):
        run = start(device, bucket)
        for seed in range(3):
            run.check(*run.launch(seed))
    assert runtime.recorded == 0


def test_a_step_that_returns_another_cache_is_not_recorded(
    start: Any, device: Any, runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def moves(weights: Any, kv: Any, inputs: Any) -> Any:
        outputs, kv = run.step(weights, kv, inputs)
        return outputs, [layer.clone() for layer in kv]

    run = start(device)
    run.compiled = device.compile(moves, Bucket(8, 8, 8, 8, True))
    for seed in range(3):
        outputs, _ = run.launch(seed)
        device.download(outputs.sums)
    assert runtime.replayed == 0
    assert "in place" in caplog.text


def test_a_step_that_fails_leaves_the_bucket_usable(start: Any, device: Any) -> None:
    run = start(device)
    broken = False

    def sometimes(weights: Any, kv: Any, inputs: Any) -> Any:
        if broken:
            raise ValueError("no such row")
        return run.step(weights, kv, inputs)

    run.compiled = device.compile(sometimes, Bucket(8, 8, 8, 8, True))
    run.check(*run.launch(0))
    broken = True
    with pytest.raises(ValueError, match="no such row"):
        run.compiled(run.weights, run.kv, device.stage(run.make_inputs(1, run.board)))
    broken = False
    run.check(*run.launch(2))


def test_a_closed_device_holds_no_graph(run: Any) -> None:
    for seed in range(3):
        run.launch(seed)
    recordings = run.device._graphs
    assert len(recordings) == 1
    run.device.close()
    assert len(recordings) == 0


def test_plan_and_static_fields_belong_to_the_form(run: Any, runtime: Any) -> None:
    """Inputs that differ in a static field select other code in the step."""
    device = run.device
    for decode_only in (True, True, False, False):
        inputs = run.make_inputs(1, run.board)
        inputs = replace(inputs, attention=replace(inputs.attention, decode_only=decode_only))
        _, run.kv = run.compiled(run.weights, run.kv, device.stage(inputs))
    assert runtime.recorded == 2
