"""Expected failures are strict, overrides are bounded, and both need a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.backend import DType
from octavo_conformance.expectations import Expectations, ExpectationsError, ExpectedFailure, read_expectations
from octavo_conformance.tolerances import LARGEST_FACTOR, Override, Tolerances
from octavo_conformance.verdict import Outcome, Verdict

KNOWN = ["ops/linear/float32/a", "ops/linear/float32/b", "step/llama/float32/whole"]
EXPECTED = Expectations((ExpectedFailure("ops/linear/*", "the matrix unit rounds"),))


@pytest.mark.parametrize(
    ("verdict", "judged"),
    [
        (Verdict.FAILED, Verdict.EXPECTED_FAILURE),
        (Verdict.PASSED, Verdict.FAILED),
        (Verdict.UNSUPPORTED, Verdict.UNSUPPORTED),
        (Verdict.UNAVAILABLE, Verdict.UNAVAILABLE),
    ],
)
def test_an_expected_failure_is_strict(verdict: Verdict, judged: Verdict) -> None:
    outcome = EXPECTED.judge(Outcome("ops/linear/float32/a", verdict, "why"))
    assert outcome.verdict is judged
    if judged is not verdict:
        assert "the matrix unit rounds" in outcome.reason


def test_a_case_nobody_expected_to_fail_is_judged_as_it_is() -> None:
    outcome = Outcome("step/llama/float32/whole", Verdict.FAILED, "why")
    assert EXPECTED.judge(outcome) is outcome


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(
        '[[expected-failure]]\ncase = "ops/linear/*"\nreason = "it rounds"\n'
        '[[tolerance]]\nop = "linear"\ndtype = "float32"\nnmse = 1e-10\nreason = "TF32"\n'
    )
    expectations = read_expectations(path, KNOWN)
    assert expectations.failures == (ExpectedFailure("ops/linear/*", "it rounds"),)
    assert Tolerances(expectations.overrides).of("linear", DType.FLOAT32) == 1e-10
    assert Tolerances().of("linear", DType.FLOAT32) != 1e-10


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nonsense", "cannot be read"),
        ("skip = 1", r"has skip; it may have \[\[expected-failure\]\] and \[\[tolerance\]\]"),
        ('[[expected-failure]]\ncase = "ops/linear/*"', "needs a text as reason, and has None"),
        ('[[expected-failure]]\ncase = "ops/linear/*"\nreason = ""', "needs a text as reason, and has ''"),
        ('[[expected-failure]]\ncase = "ops/nothing/*"\nreason = "x"', "matches no case"),
        ('[[expected-failure]]\ncase = "ops/*"\nreason = "x"\nuntil = 3', "has until; it may have case, reason"),
        ('[expected-failure]\ncase = "ops/*"\nreason = "x"', r"is written as \[\[expected-failure\]\]"),
        ('[[tolerance]]\nop = "linaer"\ndtype = "float32"\nnmse = 1e-10\nreason = "x"', "no tolerance of 'linaer'"),
        ('[[expected-failure]]\ncase = "ops/linear/*"\nreason = " "', "needs a text as reason, and has ' '"),
        ('[[tolerance]]\nop = "linear"\ndtype = "float33"\nnmse = 1e-9\nreason = "x"', "'float33' is no dtype"),
        ('[[tolerance]]\nop = "linear"\ndtype = "float32"\nnmse = 1.0\nreason = "x"', "100 times the table's figure"),
        ('[[tolerance]]\nop = "linear"\ndtype = "float32"\nnmse = nan\nreason = "x"', "100 times the table's figure"),
        ('[[tolerance]]\nop = "linear"\ndtype = "int32"\nnmse = 1e-9\nreason = "x"', "no tolerance of linear in int32"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(text)
    with pytest.raises(ExpectationsError, match=sentence):
        read_expectations(path, KNOWN)


def test_an_override_has_a_largest_value() -> None:
    table = Tolerances().of("linear", DType.FLOAT32)
    largest = LARGEST_FACTOR * table
    assert Tolerances([Override("linear", DType.FLOAT32, largest, "x")]).of("linear", DType.FLOAT32) == largest
    with pytest.raises(ValueError, match=f"at most {largest:g}"):
        Tolerances([Override("linear", DType.FLOAT32, 2 * largest, "x")])
