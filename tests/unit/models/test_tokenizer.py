"""Tokenizers give the ids that transformers gives, from a directory and from a GGUF file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from gguf import GGUFWriter
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from octavo.errors import InvalidRequestError, ModelError
from octavo.models.resolve import FileKind, ModelFiles
from octavo.models.tokenizer import load_tokenizer

CORPUS = [
    "Hello, world!",
    "  leading,   inner and trailing spaces  ",
    "line\n\n\tbreaks\r\n and\ttabs\n",
    "It's what they'd DON'T we'll I've",
    "naïve café ñandú Straße ΑΒΓαβγ привет",
    "日本語のテスト、中文字符、한국어 문장",
    "😀👩‍👩‍👧🇩🇪 emoji",
    "def f(x: int) -> int:\n    return x ** 2  # 12345\n",
    "3.14159 1000000 2024-01-01 1,234.5",
    "https://example.com/a?b=c&d=%20e#f",
    "zero\u200bwidth no\u00a0break \u2028 line",
    "e\u0301 combining and \u1e9b\u0323",
    "<s>[INST] special <|im_start|>user\nhi<|im_end|><|endoftext|> </s>",
    "MixedCASEWords snake_case kebab-case CamelCase",
    "\x00\x07 control",
    "x" * 300,
    " ",
    "",
]


def assert_same(ours, theirs) -> None:
    for text in CORPUS:
        for special in (True, False):
            assert ours.encode(text, special) == theirs.encode(text, add_special_tokens=special), repr(text)
        ids = ours.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), repr(text)


def byte_level(split: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama 2 has it: spaces are letters, unknown letters are bytes, BOS in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [word for text in CORPUS for word in text.replace(" ", " ▁").split(" ") if word.isascii()]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the byte tokens are ordinary ones
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], pair=["<s>", "$A", "$B:1"], special_tokens=[("<s>", 1)]
    )
    return tokenizer


# ------------------------------------------------------------------------------------------------ directories


def save(directory, tokenizer: Tokenizer, **config) -> ModelFiles:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **config).save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    return ModelFiles(str(directory), directory, FileKind.DIRECTORY)


DIRECTORIES = {
    "byte level": (byte_level, {"eos_token": "<|im_end|>"}),
    "byte level, BOS by config": (
        byte_level,
        {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "add_bos_token": True},
    ),
    "byte level, a token known to the config only": (
        byte_level,
        {"eos_token": "<|im_end|>", "pad_token": AddedToken("[INST]", special=True)},
    ),
    "sentencepiece": (sentencepiece, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "sentencepiece, no BOS by config": (
        sentencepiece,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": False},
    ),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_gives_the_ids_of_transformers(name, tmp_path):
    make, config = DIRECTORIES[name]
    files = save(tmp_path, make(), **config)
    assert_same(load_tokenizer(files), AutoTokenizer.from_pretrained(tmp_path))


def test_eos_is_what_the_generation_config_and_the_tokenizer_say(tmp_path):
    files = save(tmp_path, byte_level(), eos_token="<|im_end|>")
    assert load_tokenizer(files).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    assert load_tokenizer(files).eos_token_ids == (0, 2, 5)


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json", "tokenizer_config.json, named"])
def test_the_chat_template_is_found_where_checkpoints_keep_it(where, tmp_path):
    files = save(tmp_path, byte_level(), eos_token="<|im_end|>")
    assert not load_tokenizer(files).has_chat_template
    source = "{% for m in messages %}<|im_start|>{{ m.content }}{{ eos_token }}{% endfor %}"
    path = tmp_path / where.split(",")[0]
    if path.suffix == ".jinja":
        path.write_text(source)
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": source}]
        config = json.loads(path.read_text()) | {"chat_template": named if "named" in where else source}
        path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(files)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"


def test_truncation_stored_with_a_tokenizer_is_not_applied(tmp_path):
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    assert len(load_tokenizer(save(tmp_path, tokenizer, eos_token="<|im_end|>")).encode("x y z " * 20)) > 4


def test_a_damaged_or_missing_tokenizer_says_so(tmp_path):
    files = save(tmp_path, byte_level(), eos_token="<|im_end|>")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(files)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_tokenizer(files)


def test_code_in_a_directory_is_never_run(tmp_path):
    files = save(tmp_path, byte_level(), eos_token="<|im_end|>")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: pass\n")
    config = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_tokenizer(files)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------------- GGUF


@pytest.fixture(scope="module")
def demo(demo_files):
    return load_tokenizer(demo_files)


@pytest.fixture(scope="module")
def hf_demo(demo_files):
    return AutoTokenizer.from_pretrained(demo_files.path.parent, gguf_file=demo_files.path.name)


def test_the_demo_gives_the_ids_of_transformers(demo, hf_demo):
    assert_same(demo, hf_demo)


def test_the_demo_gives_the_chat_prompt_of_transformers(demo, hf_demo):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Spain?"},
    ]
    for chat in (messages, messages[1:]):
        for prompt in (True, False):
            expected = hf_demo.apply_chat_template(chat, add_generation_prompt=prompt)["input_ids"]
            assert demo.apply_chat_template(chat, add_generation_prompt=prompt) == expected


def test_the_demo_splits_numbers_as_its_original_tokenizer_does(demo):
    # "Digits" of the original separates every numeric character from the space before it, not only 0 to 9.
    assert demo.encode(" ½") == demo.encode(" ") + demo.encode("½")


def test_facts_of_the_demo(demo):
    assert demo.eos_token_ids == (2,)
    assert demo.vocab_size == 49152
    assert demo.has_chat_template
    assert demo.token_text(demo.encode(" world")[0]) == " world"
    assert demo.token_text(2) == "<|im_end|>"
    assert demo.token_text(10**6) == ""
    assert demo.longest_token >= len(max((demo.token_text(i) for i in range(2000)), key=len))


def test_the_demo_needs_neither_transformers_nor_torch():
    code = (
        "import sys\n"
        "from octavo.models.resolve import resolve_model\n"
        "from octavo.models.tokenizer import load_tokenizer\n"
        "load_tokenizer(resolve_model('demo')).apply_chat_template([{'role': 'user', 'content': 'hi'}])\n"
        "assert not {'transformers', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def write_gguf(path, kind: str, tokens, types, **fields) -> ModelFiles:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelFiles(str(path), path, FileKind.GGUF)


def pieces(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_files_give_the_ids_of_transformers(pre, tmp_path):
    trained = byte_level()
    merges = [" ".join(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    types = [3, 3, 3] + [1] * (trained.get_vocab_size() - 3)
    extra = {"add_bos_token": True} if pre != "qwen2" else {}
    files = write_gguf(
        tmp_path / "x.gguf", "gpt2", pieces(trained), types,
        tokenizer_pre=pre, token_merges=merges, bos_token_id=0, eos_token_id=2, eot_token_id=1, **extra,
    )  # fmt: skip
    ours = load_tokenizer(files)
    assert ours.eos_token_ids == (1, 2)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    if pre == "qwen2":  # the original composes letters with their accents first, which transformers leaves out here
        assert ours.encode("e\u0301") == ours.encode("\u00e9")
        theirs.backend_tokenizer.normalizer = normalizers.NFC()
    if pre in ("llama-bpe", "tekken"):  # likewise for words that are tokens
        theirs.backend_tokenizer.model.ignore_merges = True
    assert_same(ours, theirs)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("merges_stored", [True, False])
def test_sentencepiece_files_give_the_ids_of_transformers(prefix, merges_stored, tmp_path):
    trained = sentencepiece()
    tokens = pieces(trained)
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    merges = [" ".join(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    extra = {"token_merges": merges} if merges_stored else {"token_scores": [-float(i) for i in range(len(tokens))]}
    files = write_gguf(
        tmp_path / "x.gguf", "llama", tokens, types,
        bos_token_id=1, eos_token_id=2, unk_token_id=0, add_space_prefix=prefix, **extra,
    )  # fmt: skip
    ours = load_tokenizer(files)
    if prefix:
        assert_same(ours, AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf"))
    assert ours.encode("Hello")[0] == 1
    assert ours.decode(ours.encode("Hello, world! 日本")) == "Hello, world! 日本"
    assert (ours.encode("a", False) == ours.encode(" a", False)) is prefix


def test_user_defined_tokens_stay_whole_and_are_not_special(tmp_path):
    trained = byte_level()
    tokens = [*pieces(trained), "<think>", "   "]
    types = [3, 3, 3] + [1] * (len(tokens) - 5) + [4, 4]
    files = write_gguf(tmp_path / "x.gguf", "gpt2", tokens, types, tokenizer_pre="gpt-2", eos_token_id=2)
    ours = load_tokenizer(files)
    assert ours.encode("<think>   ") == [len(tokens) - 2, len(tokens) - 1]
    assert ours.decode([len(tokens) - 2], skip_special_tokens=True) == "<think>"


def test_a_tokenizer_that_cannot_be_built_says_why(tmp_path):
    with pytest.raises(ModelError, match="'bert', which is not supported"):
        load_tokenizer(write_gguf(tmp_path / "a.gguf", "bert", ["a"], [1]))
    with pytest.raises(ModelError, match="'chatglm-bpe', which is not supported; supported are default"):
        load_tokenizer(write_gguf(tmp_path / "b.gguf", "gpt2", ["a"], [1], tokenizer_pre="chatglm-bpe"))


def test_a_model_without_a_template_refuses_messages(tmp_path):
    tokenizer = load_tokenizer(save(tmp_path, byte_level(), eos_token="<|im_end|>"))
    with pytest.raises(InvalidRequestError, match="no chat template") as error:
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert error.value.param == "messages"


def test_the_bytes_of_tokens_make_up_the_text_where_characters_are_split(demo_files: ModelFiles) -> None:
    tokenizer = load_tokenizer(demo_files)
    text = "naïve 日本 🙂🙃 <|im_start|>"
    token_ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, token_ids)) == text.encode()
    assert any("\ufffd" in tokenizer.token_text(token_id) for token_id in token_ids)
