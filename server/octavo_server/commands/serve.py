"""`octavo serve [MODEL]`"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import click

from octavo_server.options import OptionGroups, settings_from, settings_options


@click.command(cls=OptionGroups)
@click.argument("model", required=False)
@settings_options()
def serve(model: str | None, config: Path | None, **given: Any) -> None:
    """Serve MODEL (a directory, a .gguf file, a hub id, or `demo`) with the OpenAI-compatible API.

    Every option can also be set in octavo.toml, by its name with underscores, and as a variable such as
    OCTAVO_PORT. The command line comes first, then the environment, then the file.
    """
    settings = settings_from(model, config, given)
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s %(message)s")
    if settings.log_level != "debug":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it announces what is announced already
    from octavo_server.server import (
        serve as run,
    )  # the model libraries load only once the options are known to be right

    sys.exit(asyncio.run(run(settings)))
