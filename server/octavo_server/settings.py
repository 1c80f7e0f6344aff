"""Every option of the server, once: flags, `OCTAVO_*` variables and `octavo.toml` are all read into
`Settings`.

The names are vLLM's where the meaning is the same. Sources, the first that names an option wins:
command line > environment > octavo.toml > default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from octavo.config import EngineConfig, parse_bytes
from octavo.errors import ConfigError

ENVIRONMENT_PREFIX = "OCTAVO_"
DEFAULT_FILE = "octavo.toml"


class Group(Enum):
    """The headings under which `--help` lists the options."""

    MODEL = "Model"
    BACKEND = "Backend"
    MEMORY = "Memory and batching"
    SERVER = "Server"
    LIMITS = "Limits and time"


def _option(default: Any, group: Group, description: str, **constraints: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group.value}, **constraints)


def _words(value: object) -> object:
    """A list from the comma-separated text of an environment variable, or from the one string of a file."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _keys(value: object) -> object:
    """Keys as `_words`; an empty one, as from a variable that is not set, would only look like protection."""
    words = (value,) if isinstance(value, str) and not value.strip() else _words(value)
    if isinstance(words, tuple | list) and any(not str(word).strip() for word in words):
        raise ValueError("expected a key that is not empty")
    return words


def _pairs(value: object) -> object:
    """A mapping from `key=value` words; what is a mapping already (a table in the file) passes."""
    if isinstance(value, Mapping):
        return {str(key): str(entry) for key, entry in value.items()}
    words = _words(value)
    if not isinstance(words, tuple | list):
        return value
    if wrong := [word for word in words if "=" not in str(word)]:
        raise ValueError(f"expected key=value, got {wrong[0]!r}")
    return dict(str(word).split("=", 1) for word in words)


def _size(value: object) -> object:
    return parse_bytes("this option", value) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Keys = Annotated[tuple[str, ...], BeforeValidator(_keys)]
Pairs = Annotated[dict[str, str], BeforeValidator(_pairs)]
Bytes = Annotated[int, BeforeValidator(_size)]

_ENGINE = EngineConfig()  # its defaults are the defaults here


class Settings(BaseModel):
    """The options of `octavo serve`; the engine's part is `engine_config()`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model: str = _option(_ENGINE.model, Group.MODEL, "Directory, .gguf file, hub id, or `demo`.")
    served_model_name: Words = _option(
        (),
        Group.MODEL,
        "Name clients ask for, repeatable; the first is shown in replies. Default: the model's name.",
    )
    dtype: str = _option(_ENGINE.dtype, Group.MODEL, "auto, float32, bfloat16 or float16.")
    max_model_len: int | None = _option(
        _ENGINE.max_model_len,
        Group.MODEL,
        "Longest prompt plus completion, in tokens. Default: the model's limit.",
    )
    seed: int = _option(_ENGINE.seed, Group.MODEL, "Seeds the requests that bring no seed of their own.")

    backend: str = _option(_ENGINE.backend, Group.BACKEND, "Backend by name, or auto for the best one available.")
    kernel: str = _option(_ENGINE.kernel, Group.BACKEND, "Attention kernel of the backend, or auto.")
    tensor_parallel_size: int = _option(
        _ENGINE.tensor_parallel_size, Group.BACKEND, "Devices that share each layer's weights."
    )
    threads: int | None = _option(
        _ENGINE.threads, Group.BACKEND, "Threads of a CPU backend. Default: the backend's choice."
    )
    backend_options: Pairs = _option(
        dict(_ENGINE.backend_options), Group.BACKEND, "key=value handed to the backend as it is, repeatable."
    )

    kv_cache_memory: int | str | None = _option(
        _ENGINE.kv_cache_memory,
        Group.MEMORY,
        "KV cache size, as bytes or like 512MiB. Default: from what is free.",
    )
    gpu_memory_utilization: float = _option(
        _ENGINE.gpu_memory_utilization, Group.MEMORY, "Share of the device's memory to use, in (0, 1]."
    )
    kv_cache_dtype: str = _option(_ENGINE.kv_cache_dtype, Group.MEMORY, "KV cache dtype; auto is the compute dtype.")
    block_size: int | None = _option(
        _ENGINE.block_size, Group.MEMORY, "Tokens a KV block holds. Default: the backend's preference."
    )
    max_num_seqs: int = _option(_ENGINE.max_num_seqs, Group.MEMORY, "Most sequences in one step.")
    max_num_batched_tokens: int = _option(_ENGINE.max_num_batched_tokens, Group.MEMORY, "Most tokens in one step.")
    max_waiting: int = _option(_ENGINE.max_waiting, Group.MEMORY, "Most requests that may queue; more get status 429.")
    enable_prefix_caching: bool = _option(
        _ENGINE.enable_prefix_caching,
        Group.MEMORY,
        "Share KV blocks between requests whose prompts start alike.",
    )
    check_integrity: bool = _option(
        _ENGINE.check_integrity,
        Group.MEMORY,
        "Verify the block manager after every step (slow; for debugging).",
    )
    sanitize: bool = _option(
        _ENGINE.sanitize,
        Group.MEMORY,
        "Fill KV blocks that nobody owns with NaN, so that a wrong read shows (slow; for debugging a backend).",
    )

    host: str = _option("127.0.0.1", Group.SERVER, "Address to listen on.")
    port: int = _option(8000, Group.SERVER, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    uds: str | None = _option(None, Group.SERVER, "Path of a Unix domain socket to listen on instead.")
    api_key: Keys = _option(
        (),
        Group.SERVER,
        "Key that clients must send as a bearer token, repeatable. Default: no key is asked for.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _option("info", Group.SERVER, "How much to log.")

    max_body_bytes: Bytes = _option(4 * 2**20, Group.LIMITS, "Largest request body, as bytes or like 4MiB.", ge=1024)
    health_timeout: float = _option(
        5.0, Group.LIMITS, "Seconds the engine process may be silent before /health answers 503.", gt=0
    )
    step_timeout: float = _option(
        20.0, Group.LIMITS, "Seconds one engine step may take before /health answers 503.", gt=0
    )
    engine_timeout: float = _option(
        60.0,
        Group.LIMITS,
        "Seconds of silence, or of one step, after which the server gives up and exits.",
        gt=0,
    )
    warm_up_seconds: float = _option(
        _ENGINE.warm_up_seconds,
        Group.LIMITS,
        "Seconds that compiling and recording decode steps may take at start-up; 0 leaves it to the first requests.",
    )
    shutdown_timeout: float = _option(
        30.0, Group.LIMITS, "Seconds that running requests get to finish after SIGTERM.", ge=0
    )

    def engine_config(self) -> EngineConfig:
        """The engine's part of the options. Raises ConfigError for a value out of range."""
        return EngineConfig(**{name: getattr(self, name) for name in ENGINE_OPTIONS})

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names under which clients may ask for the model; the first is the one shown."""
        return self.served_model_name or (self.model,)


ENGINE_OPTIONS = tuple(field.name for field in fields(EngineConfig))


@dataclass(frozen=True)
class Option:
    """What the command line needs to know of one field of `Settings`."""

    name: str
    group: str
    help: str
    default: object
    flag: bool
    repeatable: bool
    choices: tuple[str, ...]

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


def options() -> tuple[Option, ...]:
    """All options in the order of `Settings`."""
    return tuple(_describe(name) for name in Settings.model_fields)


def load_settings(
    flags: Mapping[str, object], *, file: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from flags > environment > file > defaults.

    `flags` holds only what the command line named. `file` must exist where it is given; without it
    `octavo.toml` of the working directory is read if there is one. Raises ConfigError, one sentence, for the
    first thing that is wrong.
    """
    variables = os.environ if environment is None else environment
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    path = file or Path(DEFAULT_FILE)
    if file is not None or path.is_file():
        for name, value in _read_file(path).items():
            values[name], origins[name] = value, f"{name} in {path}"
    for option in options():
        if variables.get(option.variable):  # an empty variable is how compose files say "not set"
            values[option.name], origins[option.name] = variables[option.variable], option.variable
    for name, value in flags.items():
        values[name], origins[name] = value, "--" + name.replace("_", "-")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error, origins)) from None


def _read_file(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} is not valid TOML: {error}.") from None
    known = list(Settings.model_fields)
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "`octavo serve --help` lists the options."
            raise ConfigError(f"{path} sets {key}, which is no option; {hint}")
        values[name] = value
    return values


def _sentence(error: ValidationError, origins: Mapping[str, str]) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    problem = first["msg"].removeprefix("Value error, ").split(", unable to parse")[0].rstrip(".")
    # Our own messages name the value already, and an API key that was mistyped stays out of the logs.
    shown = "" if name == "api_key" or first["type"] == "value_error" else f", and is {first['input']!r}"
    return f"{origins.get(name, name)}: {problem[0].lower()}{problem[1:]}{shown}."


def _describe(name: str) -> Option:
    field = Settings.model_fields[name]
    annotation = field.annotation
    extra = field.json_schema_extra
    return Option(
        name=name,
        group=str(extra["group"]) if isinstance(extra, dict) else "",
        help=field.description or "",
        default=field.default,
        flag=annotation is bool,
        repeatable=get_origin(annotation) in (tuple, dict),
        choices=get_args(annotation) if get_origin(annotation) is Literal else (),
    )
