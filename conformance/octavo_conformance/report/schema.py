"""The JSON Schema of a report, made from the structures: `python -m octavo_conformance.report.schema` prints it."""

from __future__ import annotations

import inspect
import json
from importlib.resources import files
from typing import Any

import msgspec

from octavo_conformance.report.document import SCHEMA, Report


def schema() -> dict[str, Any]:
    """The schema of the version that this package writes (JSON Schema, draft 2020-12)."""
    made = msgspec.json.schema(Report)
    for definition in made["$defs"].values():
        if "description" in definition:  # a docstring, which Python 3.13 indents differently from those before it
            definition["description"] = inspect.cleandoc(definition["description"])
    made["$defs"]["Report"]["properties"]["schema"] = {"const": SCHEMA}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Conformance report of an Octavo backend, version {SCHEMA}",
        **made,
    }


def published() -> dict[str, Any]:
    """The schema as the package ships it, in report.schema.json."""
    text = files("octavo_conformance.report").joinpath("report.schema.json").read_text()
    document: dict[str, Any] = json.loads(text)
    return document


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
