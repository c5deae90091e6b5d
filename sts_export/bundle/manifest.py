"""The bundle: a folder with graphs, weights, tokenizer and processor files, and the manifest that describes them.

The manifest is the single source of truth for the runtime, the engine builders and Triton.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from sts_export.bundle.consistency import contradiction
from sts_export.bundle.document import SCHEMA_VERSION, BundleFacts, GraphEntry, ManifestDocument
from sts_export.bundle.records import FileRecord, check_file
from sts_export.errors import BundleError, StsExportError
from sts_export.graphs.contracts import GraphContract
from sts_export.json_records import RecordError, decode, encode
from sts_export.paths import library_path

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest(BundleFacts):
    """Everything that is known of a bundle.

    ``graphs`` are in the order in which they run: the vision encoder, the selector, and the decoder's parts.
    """

    graphs: dict[str, GraphContract]
    graph_files: dict[str, FileRecord]

    def to_json(self) -> dict[str, Any]:
        """As in manifest.json."""
        facts = {item.name: getattr(self, item.name) for item in fields(BundleFacts)}
        graphs = {
            name: GraphEntry(**asdict(self.graph_files[name]), inputs=item.inputs, outputs=item.outputs, caches=item.caches)
            for name, item in self.graphs.items()
        }
        return encode(ManifestDocument(graphs=graphs, **facts))

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Inverse of :meth:`to_json`.

        Raises:
            RecordError: a value is missing, unknown, of another type, or contradicts the others.
            BundleError: what the bundle needs is not installed.
        """
        document = decode(ManifestDocument, data)
        if fault := contradiction(document):
            raise RecordError(fault)
        entries = document.graphs.items()
        return cls(
            **{item.name: getattr(document, item.name) for item in fields(BundleFacts)},
            graphs={name: GraphContract(name, item.inputs, item.outputs, item.caches) for name, item in entries},
            graph_files={name: FileRecord(item.file, item.size, item.sha256, item.fingerprint) for name, item in entries},
        )


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk; ``weights_folder`` is where its graphs find their external data."""

    folder: Path
    manifest: Manifest

    @property
    def weights_folder(self) -> Path:
        return Path(self.manifest.weights.folder) if self.manifest.weights.folder else self.folder

    def graph_file(self, name: str) -> Path:
        return self.folder / self.manifest.graph_files[name].file

    def with_graphs(self, *names: str) -> Bundle:
        """The same bundle for an engine that has no use for the other graphs, which are then not loaded."""
        graphs = {name: contract for name, contract in self.manifest.graphs.items() if name in names}
        return replace(self, manifest=replace(self.manifest, graphs=graphs))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")


def open_bundle(folder: str | Path, *, check_all: bool = False) -> Bundle:
    """Read and validate a bundle.

    Every file must be there with its recorded size; files up to 64 MB, or all of them with ``check_all``, with their
    recorded sha256; linked weights with their recorded fingerprint.

    Raises:
        BundleError: no such folder, not a bundle, another schema, a damaged manifest, missing or altered file.
    """
    folder = library_path(folder)
    file = folder / MANIFEST
    if not folder.exists():
        raise BundleError(
            f"bundle {folder} does not exist; check the path, or make one with sts-export --model … --output {folder}"
        )
    if not file.is_file() and (folder / "config.json").is_file() and not any(folder.glob("*.onnx")):
        raise BundleError(f"{folder} is a checkpoint, not a bundle; make one of it: sts-export --model {folder} --budget 64")
    if not file.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; give the folder that an export has written")
    try:
        data = msgspec.json.decode(file.read_bytes())
        _check_version(folder, data)
        manifest = Manifest.from_json(data)
    except BundleError:
        raise
    except (OSError, ValueError, RecursionError, StsExportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{file} is damaged ({reason}); export the bundle again") from None
    bundle = Bundle(folder, manifest)
    for record in (*manifest.graph_files.values(), *manifest.companions):
        check_file(folder, record, check_all=check_all)
    for record in manifest.weights.files:
        check_file(bundle.weights_folder, record, check_all=check_all)
    return bundle


def _check_version(folder: Path, data: Any) -> None:
    """Before the rest, which another schema may write in other words."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise RecordError("$.schema_version: not a number above 0")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{folder} has manifest schema {version}, this sts-export reads up to {SCHEMA_VERSION}; "
            "upgrade sts-export or export again"
        )
    if version < SCHEMA_VERSION:
        raise BundleError(f"{folder} was written by an older sts-export (manifest schema {version}); export it again")
