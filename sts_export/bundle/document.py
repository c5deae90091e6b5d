"""manifest.json as it is written; its JSON Schema lies beside this file.

``python -m sts_export.bundle.document`` writes the schema anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sts_export.bundle.records import FileRecord, Source, Weights
from sts_export.dtypes import Quantization
from sts_export.families.capacities import Capacities
from sts_export.families.spec import ModelSpec
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import TensorSpec
from sts_export.json_records import json_schema
from sts_export.pruning.config import PruningConfig

SCHEMA_VERSION = 3
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")


@dataclass(frozen=True)
class GraphEntry(FileRecord):
    """A graph's file, its inputs and outputs, and the pairs of KV-cache inputs and outputs."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    caches: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What is known of a bundle but for its graphs.

    ``unquantized_weights`` counts by reason the weights that a quantization left in float32.
    """

    schema_version: int = SCHEMA_VERSION
    tools: dict[str, str]
    source: Source
    model: ModelSpec
    pruning: PruningConfig
    dtype: Dtype
    quantization: Quantization | None
    capacities: Capacities
    weights: Weights
    companions: tuple[FileRecord, ...]
    unused_weights: dict[str, int]
    unquantized_weights: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class ManifestDocument(BundleFacts):
    """Everything that is known of a bundle; each graph with its file, inputs and outputs."""

    graphs: dict[str, GraphEntry]


def schema_text() -> str:
    """What SCHEMA_FILE must hold."""
    schema = {**json_schema(ManifestDocument), "title": "Manifest of a bundle of sts-export"}
    schema["$defs"]["ManifestDocument"]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
