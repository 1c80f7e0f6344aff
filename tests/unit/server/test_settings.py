"""Options come from four sources in one order, and what is wrong is one sentence that names the source."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo_server.options import OptionGroups, settings_from, settings_options
from octavo_server.settings import Settings, load_settings, options


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_engine_option_is_a_setting_with_the_same_default() -> None:
    settings = Settings()
    for field in fields(EngineConfig):
        assert getattr(settings, field.name) == getattr(EngineConfig(), field.name), field.name
    assert settings.engine_config() == EngineConfig()


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path / "o.toml", 'port = 1\nhost = "file"\nmax-num-seqs = 3\n')
    environment = {"OCTAVO_PORT": "2", "OCTAVO_HOST": "environment"}
    settings = load_settings({"port": "3"}, file=file, environment=environment)
    assert (settings.port, settings.host, settings.max_num_seqs) == (3, "environment", 3)
    assert settings.max_waiting == EngineConfig().max_waiting


def test_octavo_toml_of_the_working_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({}, environment={}).port == 8000
    write(tmp_path / "octavo.toml", "port = 4321\n[backend_options]\nlayout = 'split'\n")
    settings = load_settings({}, environment={})
    assert settings.port == 4321
    assert settings.engine_config().backend_options == {"layout": "split"}


def test_lists_and_sizes_and_truth_values_are_read_from_text() -> None:
    settings = load_settings(
        {},
        environment={
            "OCTAVO_API_KEY": "one, two",
            "OCTAVO_MAX_BODY_BYTES": "1MiB",
            "OCTAVO_ENABLE_PREFIX_CACHING": "off",
            "OCTAVO_BACKEND_OPTIONS": "a=1,b=x=y",
            "OCTAVO_PORT": "",
        },
    )
    assert settings.api_key == ("one", "two")
    assert settings.max_body_bytes == 2**20
    assert not settings.enable_prefix_caching
    assert settings.backend_options == {"a": "1", "b": "x=y"}
    assert settings.port == 8000


@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        ({"port": "99999"}, {}, "--port: input should be less than or equal to 65535, and is '99999'."),
        ({}, {"OCTAVO_PORT": "x"}, "OCTAVO_PORT: input should be a valid integer, and is 'x'."),
        ({"max_body_bytes": "4XB"}, {}, "--max-body-bytes: this option takes a number of bytes or a size"),
        ({"backend_options": ("a",)}, {}, "--backend-options: expected key=value, got 'a'."),
        ({"health_timeout": "nan"}, {}, "--health-timeout: input should be a finite number"),
    ],
)
def test_a_wrong_value_is_one_sentence_naming_its_source(
    flags: dict[str, object], environment: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(flags, environment=environment)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_an_unknown_key_in_the_file_names_the_nearest_option(tmp_path: Path) -> None:
    file = write(tmp_path / "o.toml", "max_num_sequences = 3\n")
    with pytest.raises(ConfigError, match=r"sets max_num_sequences, which is no option; did you mean max_num_seqs\?"):
        load_settings({}, file=file, environment={})


@pytest.mark.parametrize(("text", "sentence"), [("port = ", "is not valid TOML"), (None, "cannot be read")])
def test_an_unreadable_file_is_a_sentence(tmp_path: Path, text: str | None, sentence: str) -> None:
    file = tmp_path / "o.toml"
    if text is not None:
        write(file, text)
    with pytest.raises(ConfigError, match=sentence):
        load_settings({}, file=file, environment={})


def test_a_mistyped_api_key_is_not_printed(tmp_path: Path) -> None:
    file = write(tmp_path / "o.toml", "api_key = [1234567]\n")
    with pytest.raises(ConfigError) as error:
        load_settings({}, file=file, environment={})
    assert "1234567" not in str(error.value)


def test_engine_limits_are_checked_by_the_engine_configuration() -> None:
    with pytest.raises(ConfigError, match="max_num_seqs must be an integer of at least 1"):
        load_settings({"max_num_seqs": "0"}, environment={}).engine_config()


def test_every_setting_but_the_model_is_a_flag_and_flags_reach_the_settings() -> None:
    seen: list[Settings] = []

    @click.command(cls=OptionGroups)
    @settings_options()
    def command(config: Path | None, **given: object) -> None:
        seen.append(settings_from("tiny", config, given))

    result = CliRunner().invoke(
        command,
        ["--api-key", "a", "--api-key", "b", "--no-enable-prefix-caching", "--max-model-len", "64"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    settings = seen[0]
    assert settings.model == "tiny"
    assert (settings.api_key, settings.enable_prefix_caching, settings.max_model_len) == (("a", "b"), False, 64)
    help_text = CliRunner().invoke(command, ["--help"]).output
    for option in options():
        assert option.name == "model" or "--" + option.name.replace("_", "-") in help_text
