from __future__ import annotations

import pytest

from octavo.errors import InvalidRequestError
from octavo.scheduling import Request, Status


def test_sequence_zero_prefills_and_its_siblings_wait_for_it() -> None:
    request = Request("r", (1, 2, 3), max_tokens=4, n=3, seeds=(7, 8, 9))
    assert [s.index for s in request.sequences] == [0, 1, 2]
    assert [s.status for s in request.sequences] == [Status.WAITING, Status.PENDING, Status.PENDING]
    assert [s.seed for s in request.sequences] == [7, 8, 9]
    assert request.sequences[0].num_samples == 3


def test_the_output_view_grows_with_the_sequence() -> None:
    sequence = Request("r", (1, 2, 3), max_tokens=4).sequences[0]
    output = sequence.output_token_ids
    assert not output
    sequence.token_ids += [10, 11, 12]
    assert list(output) == [10, 11, 12]
    assert output == [10, 11, 12]
    assert (output[0], output[-1], output[1:], output[::-1]) == (10, 12, [11, 12], [12, 11, 10])
    assert sequence.num_output_tokens == len(output) == 3
    for index in (3, -4):
        with pytest.raises(IndexError):
            output[index]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt_token_ids": ()}, "The prompt is empty"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, and is 0"),
        ({"n": 0}, "n must be at least 1, and is 0"),
        ({"n": 2, "seeds": (1,)}, "2 sequences need 2 seeds, and got 1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(options: dict[str, object], sentence: str) -> None:
    arguments: dict[str, object] = {"prompt_token_ids": (1,), "max_tokens": 1, **options}
    with pytest.raises(InvalidRequestError, match=sentence):
        Request("r", **arguments)  # type: ignore[arg-type]
