"""The published JSON Schema: it is the one that follows from the records, and takes what is written and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jsonschema import Draft202012Validator

from sts_export.bundle.document import SCHEMA_FILE, schema_text
from sts_export.bundle.manifest import MANIFEST, Bundle
from sts_export.bundle.records import MergedAdapter

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
# Objects whose keys are names of something.
TABLES = (
    "tools",
    "graphs",
    "unused_weights",
    "unquantized_weights",
    "source.weights",
    "pruning.stage1.settings",
    "pruning.stage2.settings",
)


def test_it_is_up_to_date() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run python -m sts_export.bundle.document"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_manifests_are_valid(bundle: Bundle) -> None:
    VALIDATOR.validate(json.loads((bundle.folder / MANIFEST).read_text()))


def test_with_an_adapter(bundle: Bundle) -> None:
    source = replace(bundle.manifest.source, adapter=MergedAdapter("a", "b", 3, "c"))
    written = json.loads(json.dumps(replace(bundle.manifest, source=source).to_json()))
    assert written["source"]["adapter"] == {"folder": "a", "base": "b", "tensors": 3, "processor": "c"}
    VALIDATOR.validate(written)


def objects(data: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in ``data`` with its path."""
    if isinstance(data, dict):
        yield path, data
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from objects(value, f"{path}.{key}".removeprefix("."))


def test_objects_have_all_their_fields_and_no_others(bundle: Bundle) -> None:
    manifest = json.loads((bundle.folder / MANIFEST).read_text())
    manifest["graphs"] = {name: {**graph, "inputs": graph["inputs"][:1]} for name, graph in manifest["graphs"].items()}
    manifest["companions"] = manifest["companions"][:1]
    for name in manifest["graphs"]:
        manifest["graphs"][name]["outputs"] = []
    VALIDATOR.validate(manifest)
    tried = 0
    for path, item in objects(manifest):
        if path in TABLES:
            continue
        for key, value in list(item.items()):
            del item[key]
            assert not VALIDATOR.is_valid(manifest), f"{path} without {key}"
            item[key] = value
            tried += 1
        item["unheard-of"] = None
        assert not VALIDATOR.is_valid(manifest), path
        del item["unheard-of"]
    assert tried > 70
    VALIDATOR.validate(manifest)
