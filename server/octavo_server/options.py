"""Command-line options made from `Settings`, so that flags, variables and the file cannot drift apart."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from octavo_server.settings import ENGINE_OPTIONS, Option, Settings, load_settings, options


class OptionGroups(click.Command):
    """A command whose `--help` lists the generated options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for heading, records in sorted(groups.items(), key=lambda group: group[0] != "Options"):
            with formatter.section(heading):
                formatter.write_dl(records)


class _GroupedOption(click.Option):
    group = "Options"


def settings_options(
    *, only: Collection[str] | None = None, without: Collection[str] = ("model",)
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the options of `Settings` (those in `only`, or all but `without`) and `--config`.

    `model` is left out because the commands take it as an argument.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        chosen = [
            option for option in options() if option.name not in without and (only is None or option.name in only)
        ]
        for option in reversed(chosen):
            function = _decorator(option)(function)
        return click.option(
            "--config",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Configuration file. Default: octavo.toml in the working directory, if there is one.",
        )(function)

    return decorate


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the engine's options alone, for commands that serve nothing."""
    return settings_options(only=ENGINE_OPTIONS)(function)


def settings_from(model: str | None, config: Path | None, given: dict[str, Any]) -> Settings:
    """Settings from what click parsed; an option that was not named on the command line is None or ()."""
    flags = {name: value for name, value in given.items() if value is not None and value != ()}
    if model is not None:
        flags["model"] = model
    return load_settings(flags, file=config)


def _decorator(option: Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    spelled = "--" + option.name.replace("_", "-")
    attributes: dict[str, Any] = {
        "cls": type("GroupedOption", (_GroupedOption,), {"group": option.group}),
        "default": None,  # what was not named must not hide the environment or the file
        "help": f"{option.help}{_default_text(option)}",
    }
    if option.flag:
        return click.option(f"{spelled}/--no-{spelled[2:]}", option.name, **attributes)
    if option.choices:
        return click.option(spelled, option.name, type=click.Choice(option.choices), **attributes)
    # Values stay text: `Settings` is the one place that parses and checks them, whatever their source.
    metavar = {"backend_options": "KEY=VALUE"}.get(option.name, "VALUE")
    return click.option(spelled, option.name, type=str, metavar=metavar, multiple=option.repeatable, **attributes)


def _default_text(option: Option) -> str:
    return "" if option.default in (None, (), {}) else f"  [default: {option.default}]"
