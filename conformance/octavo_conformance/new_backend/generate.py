"""A new backend from its template: the package of a plugin that brings a Device and leaves the rest to the contract."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from octavo_conformance.new_backend.name import BackendName, NewBackendError, check_name

__all__ = ["NewBackendError", "generate"]

_FILES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    "octavo-conformance.toml": "octavo-conformance.toml.jinja",
    "{module}/__init__.py": "__init__.py.jinja",
    "{module}/plugin.py": "plugin.py.jinja",
    "{module}/device.py": "device.py.jinja",
    "{module}/py.typed": "py.typed.jinja",
    "tests/test_conformance.py": "test_conformance.py.jinja",
    ".github/workflows/conformance.yml": "conformance.yml.jinja",
    ".gitignore": "gitignore.jinja",
}
"""Where each template goes."""


def generate(name: str, directory: Path) -> Path:
    """Write the package of a backend `name` into a new folder `octavo-NAME` of `directory`, and return that folder.

    Raises NewBackendError for a name that cannot be a backend's, for a folder that exists, and where it cannot be
    written.
    """
    checked = check_name(name)
    root = directory / checked.package
    texts = render(checked)  # before anything is written
    if root.exists():
        raise NewBackendError(f"{root} exists already; remove it, or choose another --directory.")
    try:
        for path, text in texts.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    except OSError as error:
        raise NewBackendError(f"{root} cannot be written: {error}") from None
    return root


def render(name: BackendName) -> Mapping[str, str]:
    """The text of each file of the package, by its path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Not the usual braces: the workflow file has its own, and they must come through.
    templates = Environment(
        loader=PackageLoader("octavo_conformance", "new_backend/template"),
        variable_start_string="<<",
        variable_end_string=">>",
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Python and TOML, of a name that has been checked
    )
    values = {
        "name": name.name,
        "package": name.package,
        "module": name.module,
        "cls": name.title,
        "octavo": ".".join(version("octavo-conformance").split(".")[:2]),
    }
    return {
        path.format(module=name.module): templates.get_template(template).render(values)
        for path, template in _FILES.items()
    }
