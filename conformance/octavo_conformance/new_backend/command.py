"""`octavo new-backend NAME`"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("new-backend")
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The folder in which octavo-NAME is made; this one by default.",
)
def new_backend(name: str, directory: Path) -> None:
    """Write the package of a new backend NAME, which passes the conformance suite as it is written.

    It brings a Device on NumPy and leaves every operation to the contract. Replace them one by one.
    """
    from octavo_conformance.new_backend.generate import NewBackendError, generate

    try:
        root = generate(name, directory)
    except NewBackendError as error:
        raise click.UsageError(str(error)) from None
    click.echo(f"{root} is a backend that computes with NumPy:")
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        click.echo(f"  {path.relative_to(root)}")
    click.echo("\nNext:")
    click.echo(f"  cd {root}")
    click.echo('  pip install -e ".[test]"')
    click.echo(f"  octavo conformance run --backend {name} --quick")
