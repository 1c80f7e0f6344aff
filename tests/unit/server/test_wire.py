"""What crosses the process boundary arrives as it left."""

from __future__ import annotations

import pytest

from octavo.config import EngineConfig
from octavo.engine import EngineStats
from octavo.outputs import Logprob, RequestMetrics, RequestUpdate, SequenceUpdate, TokenLogprobs
from octavo.processor import EngineRequest
from octavo.sampling.params import SamplingParams
from octavo_server.messages import COMMANDS, EVENTS, Add, Command, Event, Refusal, Rejected, Start, Updates, encode

PARAMS = SamplingParams(n=2, stop=("a", "é"), logit_bias={5: -1.5}, seed=-(2**63), logprobs=3)
STATS = EngineStats(1, 2, 3, 0.5, 5, 6, 7, 8, 9, 10, 11, 12, {"stop": 4})
UPDATE = RequestUpdate(
    "r",
    (
        SequenceUpdate(
            1, "text", (1, 2), (TokenLogprobs(1, Logprob(-0.5, 1, "x"), ((1, Logprob(-0.5, 1, "x")),)),), "stop", 7
        ),
    ),
    finished=True,
    prompt_logprobs=(None, TokenLogprobs(3, Logprob(float("-inf"), 9, "y"))),
    metrics=RequestMetrics(1.0, 2.0),
)


@pytest.mark.parametrize(
    "command",
    [
        Start(EngineConfig(model="m", kv_cache_memory="1MiB", max_model_len=5, backend_options={"a": "b"})),
        Start(EngineConfig()),
        Add(EngineRequest("r", (1, 2, 3), PARAMS, "prompt", -1, "salt", 12.5)),
    ],
)
def test_commands_survive_the_wire(command: Command) -> None:
    assert COMMANDS.decode(encode(command)) == command


@pytest.mark.parametrize("event", [Updates((UPDATE,), STATS), Rejected("r", Refusal.QUEUE_FULL, "why")])
def test_events_survive_the_wire(event: Event) -> None:
    assert EVENTS.decode(encode(event)) == event
