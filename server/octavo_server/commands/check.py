"""`octavo check [MODEL]`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from octavo_server.options import OptionGroups, engine_options, settings_from


@click.command(cls=OptionGroups)
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@engine_options
def check(model: str | None, as_json: bool, config: Path | None, **given: Any) -> None:
    """Say what would run for MODEL with these options, without loading its weights."""
    from octavo.loading import plan_engine
    from octavo_server.progress import LoadingProgress
    from octavo_server.report import as_data, describe

    settings = settings_from(model, config, given)
    with LoadingProgress() as progress:
        info = plan_engine(settings.engine_config(), progress)
    click.echo(json.dumps(as_data(info), indent=2) if as_json else "\n".join(describe(info)))
