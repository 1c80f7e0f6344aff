"""The command `octavo`.

Commands are imported when they are run, so that `octavo --help` needs neither a server nor a model library.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec

import click

from octavo_server import __version__

_COMMANDS = {
    "serve": ("octavo_server.commands.serve:serve", "Serve a model with the OpenAI-compatible API."),
    "generate": ("octavo_server.commands.generate:generate", "Complete a prompt here, without a server."),
    "check": (
        "octavo_server.commands.check:check",
        "Say what would run: backend, kernel, memory, concurrency.",
    ),
    "backends": (
        "octavo_server.commands.backends:backends",
        "List the backends found, and why one cannot run.",
    ),
    "bench": ("octavo_server.bench:bench", "Measure throughput, latency, KV waste and start-up."),
    "conformance": (
        "octavo_conformance.commands:conformance",
        "Hold a backend to the contract, case by case, and report it.",
    ),
    "new-backend": (
        "octavo_conformance.new_backend.command:new_backend",
        "Write the package of a new backend, whose tests are the conformance suite.",
    ),
}


class _Commands(click.Group):
    """Commands by import path, with their help at hand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        package = module.partition(".")[0]
        if find_spec(package) is None:
            raise click.ClickException(
                f"`octavo {cmd_name}` is in a package of its own: pip install {package.replace('_', '-')}"
            )
        command = getattr(import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{name} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="octavo")
def octavo() -> None:
    """A pluggable hardware-backend inference runtime for language models.

    \b
      octavo serve demo
      octavo generate demo --chat --prompt "What is the capital of France?"
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    A user's mistake is one sentence on standard error and exit code 2, and a lost device one and exit code 1.
    """
    try:
        code = octavo.main(arguments, prog_name="octavo", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except (ValueError, RuntimeError) as error:
        code = _exit_code(error)
        if code is None or logging.getLogger().isEnabledFor(logging.DEBUG):
            raise
        click.echo(f"octavo: {error}", err=True)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)


def _exit_code(error: ValueError | RuntimeError) -> int | None:
    """The code for an error whose sentence is for the user; None for a fault of the program."""
    from octavo.backend.errors import BackendError, DeviceLostError
    from octavo.errors import OctavoError

    match error:
        case OctavoError() | BackendError():
            return 2
        case DeviceLostError():
            return 1
    return None
