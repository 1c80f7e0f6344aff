"""The tiny models: every supported family, as checkpoints that other readers read alike, with an oracle to rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from octavo.backend import DType
from octavo.models.families import FAMILIES
from octavo.models.resolve import resolve_model
from octavo.models.tokenizer import load_tokenizer
from octavo_conformance.cases import engine, step
from octavo_conformance.oracles.models import EOS, VARIANTS, VOCABULARY, ModelSpec, TinyModel, tiny_model

EVERY = [ModelSpec(family, variant) for family, variants in VARIANTS.items() for variant in variants]
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, 40).tolist()


@pytest.fixture
def llama() -> TinyModel:
    return tiny_model(ModelSpec("llama"))


def test_every_family_that_core_supports_has_models_and_cases() -> None:
    assert {tiny_model(ModelSpec(family)).config.architecture for family in VARIANTS} == set(FAMILIES)
    assert {case.subject for case in step.cases()} == set(VARIANTS)
    parity = {case.id for case in engine.cases() if case.subject == "parity"}
    assert {f"engine/parity/{spec.family},{spec.variant}" for spec in EVERY} <= parity


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: f"{spec.family}-{spec.variant}")
def test_the_saved_checkpoint_is_the_model_of_the_oracle(spec: ModelSpec) -> None:
    model = tiny_model(spec)
    read = AutoModelForCausalLM.from_pretrained(model.directory, dtype=torch.float64, attn_implementation="eager")
    with torch.inference_mode():
        logits = read(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(model.logits(TOKENS), logits, rtol=0, atol=1e-6)


def test_variants_are_different_models() -> None:
    logits = [tiny_model(spec).logits(TOKENS) for spec in EVERY]
    for index, one in enumerate(logits):
        for other in logits[index + 1 :]:
            assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_the_oracle_computes_with_weights_rounded_to_the_dtype(dtype: DType) -> None:
    model = tiny_model(ModelSpec("llama", dtype=dtype))
    assert {DType(str(tensor.dtype).removeprefix("torch.")) for tensor in _tensors(model).values()} == {dtype}
    assert json.loads((model.directory / "config.json").read_text())["dtype"] == dtype.value
    exact = tiny_model(ModelSpec("llama")).logits(TOKENS)
    assert 1e-5 < np.abs(model.logits(TOKENS) - exact).max() < 0.5


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: f"{spec.family}-{spec.variant}")
def test_each_token_is_felt_by_those_after_it_and_by_none_before(spec: ModelSpec) -> None:
    changed = [*TOKENS]
    changed[20] = (changed[20] + 1) % VOCABULARY
    difference = np.abs(tiny_model(spec).logits(TOKENS) - tiny_model(spec).logits(changed)).max(axis=-1)
    assert difference[:20].max() == 0.0
    assert difference[20:24].min() > 0.02


def test_shortfalls_are_zero_for_the_best_tokens_and_their_distance_for_others(llama: TinyModel) -> None:
    prompt, output = TOKENS[:10], []
    for _ in range(6):
        output.append(int(llama.logits([*prompt, *output])[-1].argmax()))
    assert llama.shortfalls(prompt, output).tolist() == [0.0] * 6
    row = llama.logits([*prompt, *output[:2]])[-1]
    second = int(np.argsort(row)[-2])
    found = llama.shortfalls(prompt, [*output[:2], second])
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2] == pytest.approx(row.max() - row[second])


def test_logprobs_are_the_log_of_probabilities(llama: TinyModel) -> None:
    np.testing.assert_allclose(np.exp(llama.logprobs(TOKENS)).sum(axis=-1), 1.0, rtol=1e-12)
    assert (llama.logprobs(TOKENS).argmax(axis=-1) == llama.logits(TOKENS).argmax(axis=-1)).all()


def test_the_tokenizer_takes_any_text_and_ends_at_eos(llama: TinyModel) -> None:
    tokenizer = load_tokenizer(resolve_model(str(llama.directory)))
    text = "A byte a token: é, 日本, 🙂\n"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_ids == (EOS,)
    assert tokenizer.vocab_size == VOCABULARY


def test_a_model_is_made_once_in_a_process_and_gone_with_it() -> None:
    assert tiny_model(ModelSpec("llama")) is tiny_model(ModelSpec("llama"))
    program = (
        "from octavo_conformance.oracles.models import ModelSpec, tiny_model\n"
        "model = tiny_model(ModelSpec('llama'))\n"
        "assert (model.directory / 'config.json').is_file()\n"
        "print(model.directory)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()


def _tensors(model: TinyModel) -> dict[str, torch.Tensor]:
    return load_file(model.directory / "model.safetensors")
