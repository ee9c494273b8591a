#!/usr/bin/env python3
"""Writes docs/manifest.schema.json, the JSON schema of an artifact's manifest.json.

    python scripts/generate_manifest_schema.py [FILE]      (default: docs/manifest.schema.json)

It is made from the classes that write and read manifests, so it says what they say. A test compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hermes_deploy.repository.manifest import SCHEMA, Manifest

FILE = Path(__file__).parents[1] / "docs" / "manifest.schema.json"


def schema() -> str:
    """The document as it is checked in. Every key stands in every manifest, so all are required."""
    document = Manifest.model_json_schema(mode="serialization")
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"hermes-deploy artifact manifest, schema version {SCHEMA}",
        **{key: value for key, value in document.items() if key != "title"},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else FILE).write_text(schema(), encoding="utf-8")
