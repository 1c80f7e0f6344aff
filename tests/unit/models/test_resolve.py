"""From a name to files, and the sentence for names that lead nowhere."""

from __future__ import annotations

import errno
import socket

import pytest
from huggingface_hub.utils import filter_repo_objects

from octavo.errors import ModelError
from octavo.models.resolve import FileKind, resolve_model


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_a_directory_of_safetensors(directory):
    files = resolve_model(str(directory))
    assert (files.path, files.kind, files.name) == (directory, FileKind.DIRECTORY, str(directory))


def test_a_gguf_file_by_itself_and_as_the_only_one_of_a_directory(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    for name in (file, tmp_path):
        files = resolve_model(str(name))
        assert (files.path, files.kind) == (file, FileKind.GGUF)


def test_safetensors_win_over_a_gguf_in_the_same_directory(directory):
    (directory / "m.gguf").write_bytes(b"GGUF")
    assert resolve_model(str(directory)).kind is FileKind.DIRECTORY


def test_home_is_expanded(directory, monkeypatch):
    monkeypatch.setenv("HOME", str(directory.parent))
    assert resolve_model(f"~/{directory.name}").path == directory


def test_several_gguf_files_ask_for_one(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"2 \.gguf files; name one of them"):
        resolve_model(str(tmp_path))


def test_an_empty_directory(tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere", "nowhere.gguf", "nowhere/"]
)
def test_a_misspelt_path_is_not_looked_up_anywhere_else(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="There is no file or directory"):
        resolve_model(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b/c",
        "a/../b",
        "-x/y",
        "a//b",
        "a/b?c",
        "a/b c",
        "a@b",
        "models--a--b",
        "a/\0b",
        "é/b",
        "a" * 200,
    ],
)
def test_what_is_no_hub_id_never_reaches_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelError):
        resolve_model(name)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"neither a directory nor a \.gguf file"):
        resolve_model(str(tmp_path / "model.bin"))


def test_a_hub_id_is_fetched_without_anything_that_could_run(directory, monkeypatch):
    asked = {}

    def snapshot_download(repo_id, allow_patterns, ignore_patterns):
        asked[repo_id] = allow_patterns
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    seen = []
    files = resolve_model("organisation/name-1.5_b", lambda text, part: seen.append(part))
    assert files.path == directory
    assert seen == [0.0, 1.0]
    (patterns,) = asked.values()
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in patterns)


def test_the_same_weights_in_another_layout_are_not_fetched_a_second_time(directory, monkeypatch):
    names = ["config.json", "consolidated.safetensors", "model-00001-of-00002.safetensors", "tokenizer.model"]
    fetched = []

    def snapshot_download(repo_id, **patterns):
        fetched.extend(filter_repo_objects(names, **patterns))
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolve_model("organisation/name")
    assert fetched == ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("no route"), "the model hub cannot be reached to fetch it: no route; name a local"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "cannot be reached .*Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "cannot be reached .*Name or service not known"),
        (RuntimeError("first line.\nsecond line"), "cannot be reached to fetch it: first line; name"),
        (RuntimeError(), "cannot be reached to fetch it: RuntimeError; name"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/cache/blob"),
            "^organisation/name cannot be fetched: No space left on device: /cache/blob\\.$",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), "^organisation/name cannot be fetched: Permission denied"),
    ],
)
def test_what_keeps_a_model_from_being_fetched_is_one_sentence(error, sentence, monkeypatch):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ModelError, match=sentence) as told:
        resolve_model("organisation/name")
    assert "\n" not in str(told.value)
