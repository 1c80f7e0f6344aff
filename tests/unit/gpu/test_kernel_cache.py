"""Compiled kernels are found again by the next start, and not by another version, architecture or user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo_torch.gpu import kernel_cache
from octavo_torch.gpu.kernel_cache import KEPT, VARIABLE, fingerprint, use_kernel_cache


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    kernels = tmp_path / "kernels"
    (kernels / "attention" / "__pycache__").mkdir(parents=True)
    (kernels / "rms_norm.py").write_text("norm")
    (kernels / "attention" / "tiles.py").write_text("tiles")
    tuning = tmp_path / "tuning.toml"
    tuning.write_text("[[rms_norm]]")
    return kernels, tuning


def test_the_fingerprint_changes_with_all_that_kernels_depend_on(
    sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, tuning = sources
    seen = {fingerprint("sm_90", sources)}
    seen.add(fingerprint("sm_100", sources))
    (kernels / "attention" / "tiles.py").write_text("tiles, wider")
    seen.add(fingerprint("sm_90", sources))
    tuning.write_text("[[rms_norm]]\nrows = 2")
    seen.add(fingerprint("sm_90", sources))
    (kernels / "rms_norm.py").rename(kernels / "norm.py")
    seen.add(fingerprint("sm_90", sources))
    for package in ("torch", "triton", "octavo-torch"):
        with monkeypatch.context() as context:
            context.setattr(kernel_cache, "_version", lambda name, package=package: f"9 {name == package}")
            seen.add(fingerprint("sm_90", sources))
    assert len(seen) == 8


def test_the_fingerprint_does_not_change_with_what_python_leaves_behind(sources: tuple[Path, Path]) -> None:
    before = fingerprint("sm_90", sources)
    (sources[0] / "attention" / "__pycache__" / "tiles.py").write_text("compiled")
    (sources[0] / "notes.txt").write_text("a file that is no Python")
    assert fingerprint("sm_90", sources) == before


def test_kernels_are_kept_under_the_users_cache(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    said = use_kernel_cache("abc", environment)
    assert environment[VARIABLE] == str(tmp_path / "octavo" / "triton" / "abc")
    assert Path(environment[VARIABLE]).is_dir()
    assert environment[VARIABLE] in said
    use_kernel_cache("def", environment)  # a second device, of another architecture
    assert Path(environment[VARIABLE]).name == "def"


def test_without_the_variable_the_cache_is_in_the_home_directory(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    use_kernel_cache("abc", environment)
    assert environment[VARIABLE] == str(tmp_path / ".cache" / "octavo" / "triton" / "abc")


def test_a_directory_that_the_user_chose_stays(tmp_path: Path) -> None:
    environment = {VARIABLE: str(tmp_path / "mine"), "XDG_CACHE_HOME": str(tmp_path)}
    assert str(tmp_path / "mine") in use_kernel_cache("abc", environment)
    assert environment[VARIABLE] == str(tmp_path / "mine")
    assert not (tmp_path / "octavo").exists()


def test_only_the_fingerprints_used_last_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "octavo" / "triton"
    for age in range(6):
        (root / f"old{age}" / "kernel").mkdir(parents=True)
        os.utime(root / f"old{age}", (1e9 - age, 1e9 - age))
    use_kernel_cache("new", {"XDG_CACHE_HOME": str(tmp_path)})
    assert sorted(path.name for path in root.iterdir()) == ["new", *(f"old{age}" for age in range(KEPT - 1))]
    use_kernel_cache("old2", {"XDG_CACHE_HOME": str(tmp_path)})  # the oldest, used again, is the newest
    use_kernel_cache("newer", {"XDG_CACHE_HOME": str(tmp_path)})
    assert (root / "old2").is_dir()
    assert not (root / "old1").exists()


def test_where_nothing_can_be_written_kernels_are_kept_for_the_run_only(tmp_path: Path) -> None:
    (tmp_path / "octavo").write_text("a file in the way")
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    said = use_kernel_cache("abc", environment)
    directory = Path(environment[VARIABLE])
    assert "for this run only" in said
    assert directory.stat().st_mode & 0o077 == 0  # nobody else may put kernels there
    directory.rmdir()
