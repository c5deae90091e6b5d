"""The bundle: a folder with graphs, weights, tokenizer and processor files, and the manifest that describes them.

The manifest is the single source of truth for the runtime, the engine builders and Triton.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sts_export.errors import BundleError, CheckpointError, StsExportError
from sts_export.families import families
from sts_export.families.build import contracts
from sts_export.families.capacities import Capacities
from sts_export.families.spec import ModelSpec
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract
from sts_export.paths import library_path
from sts_export.pruning.config import PruningConfig

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
QUANTIZATIONS = ("int8", "int4")
# Loading must stay instant: larger files are checked by size, and by sha256 only when asked for.
_HASH_ON_LOAD = 64 << 20


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle: name relative to its folder, size in bytes, sha256 of the content.

    For linked weights ``sha256`` is None and ``fingerprint`` stands in: header and samples of the data.
    """

    file: str
    size: int
    sha256: str | None = None
    fingerprint: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: item for key, item in asdict(self).items() if item is not None}


@dataclass(frozen=True)
class Weights:
    """``copy``: files in the bundle; ``link``: files in ``folder``, the checkpoint's own."""

    mode: Literal["copy", "link"]
    files: tuple[FileRecord, ...]
    folder: str | None = None

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"mode": self.mode, "files": [record.to_json() for record in self.files]}
        return data if self.folder is None else {**data, "folder": self.folder}


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a bundle.

    ``graphs`` are in the order in which they run: the vision encoder, the selector, and the decoder's parts.
    ``quantization`` is None, ``int8`` or ``int4``; ``unquantized_weights`` counts by reason the weights it left in float32.
    """

    tools: dict[str, str]
    source: dict[str, Any]
    model: ModelSpec
    pruning: PruningConfig
    dtype: Dtype
    quantization: str | None
    capacities: Capacities
    graphs: dict[str, GraphContract]
    graph_files: dict[str, FileRecord]
    weights: Weights
    companions: tuple[FileRecord, ...]
    unused_weights: dict[str, int]
    unquantized_weights: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "tools": self.tools,
            "source": self.source,
            "model": self.model.to_json(),
            "pruning": self.pruning.to_json(),
            "dtype": self.dtype,
            "quantization": self.quantization,
            "capacities": self.capacities.to_json(),
            "graphs": {name: {**self.graph_files[name].to_json(), **self.graphs[name].to_json()} for name in self.graphs},
            "weights": self.weights.to_json(),
            "companions": [record.to_json() for record in self.companions],
            "unused_weights": self.unused_weights,
            "unquantized_weights": self.unquantized_weights,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, StsExportError: the manifest is damaged.
        """
        manifest = cls(
            tools=data["tools"],
            source=data["source"],
            model=ModelSpec.from_json(data["model"]),
            pruning=PruningConfig.from_json(data["pruning"]),
            dtype=data["dtype"],
            quantization=data["quantization"],
            capacities=Capacities.from_json(data["capacities"]),
            graphs={name: GraphContract.from_json(name, item) for name, item in data["graphs"].items()},
            graph_files={name: _record(item) for name, item in data["graphs"].items()},
            weights=Weights(
                data["weights"]["mode"],
                tuple(_record(item) for item in data["weights"]["files"]),
                data["weights"].get("folder"),
            ),
            companions=tuple(_record(item) for item in data["companions"]),
            unused_weights=data["unused_weights"],
            unquantized_weights=data["unquantized_weights"],
        )
        _check_types(manifest)
        _check_sense(manifest)
        return manifest


def _check_types(item: Any) -> None:
    """Every field of the dataclass, and of those inside it, has its annotated type."""
    hints = _hints(type(item))
    for field in fields(item):
        _check_type(getattr(item, field.name), hints[field.name], field.name)


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)  # one per class, for hundreds of tensors


def _check_type(value: Any, hint: Any, name: str) -> None:
    origin, inner = get_origin(hint), get_args(hint)
    right = True
    if is_dataclass(value):
        _check_types(value)
    elif origin is Literal:
        right = value in inner
    elif origin is dict:
        for element in value.values():
            _check_type(element, inner[1], name)
    elif origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        for element, kind in zip(value, kinds, strict=True):
            _check_type(element, kind, name)
    elif inner:  # a union of plain types and dataclasses
        right = type(value) in inner
        if right and is_dataclass(value):
            _check_types(value)
    else:
        right = hint is Any or type(value) is hint or (hint is float and type(value) is int)
    if not right:
        raise TypeError(name)


def _check_sense(manifest: Manifest) -> None:
    """What the runtime relies on: all graphs, plain file names, and numbers that fit together."""
    model, pruning, capacities = manifest.model, manifest.pruning, manifest.capacities
    planned = Capacities.plan(
        model,
        pruning,
        prompt_tokens=capacities.prompt_tokens,
        new_tokens=capacities.new_tokens,
        visual_tokens=capacities.visual_tokens,
    )
    records = (*manifest.graph_files.values(), *manifest.weights.files)
    sound = (
        model.family in families()
        and capacities == planned
        and list(manifest.graphs.items()) == list(contracts(model, pruning, capacities, manifest.dtype).items())
        and all(Path(record.file).name == record.file for record in records)
        and all(_lies_below(record.file) for record in manifest.companions)
        and (manifest.weights.folder is None) == (manifest.weights.mode == "copy")
        and all(type(manifest.source[key]) is kind for key, kind in (("model", str), ("folder", str), ("weights", dict)))
        and all(type(digest) is str for digest in manifest.source["weights"].values())
        and pruning.num_visual_tokens == model.max_image_tokens
        and pruning.num_layers == model.decoder.num_layers
        and (manifest.quantization is None or (manifest.quantization in QUANTIZATIONS and manifest.dtype == "float32"))
    )
    if not sound:
        raise ValueError("the manifest contradicts itself")


def _lies_below(name: str) -> bool:
    """Whether a file of this name lies in the bundle's folder or in one below it."""
    return all(part != ".." and Path(part).name == part != "" for part in name.split("/"))


def _record(data: dict[str, Any]) -> FileRecord:
    return FileRecord(data["file"], data["size"], data.get("sha256"), data.get("fingerprint"))


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


def record_file(file: Path, folder: Path | None = None) -> FileRecord:
    """Size and sha256 of a finished file; its name is relative to ``folder``, by default the one it lies in."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    name = file.relative_to(folder or file.parent).as_posix()
    return FileRecord(name, file.stat().st_size, digest.hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")


def open_bundle(folder: str | Path, *, check_all: bool = False) -> Bundle:
    """Read and validate a bundle.

    Every file must be there with its recorded size; files up to 64 MB, or all of them with ``check_all``, with their
    recorded sha256; linked weights with their recorded fingerprint.

    Raises:
        BundleError: no such folder, not a bundle, newer schema, missing or altered file.
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
        data = json.loads(file.read_text(encoding="utf-8"))
        version = data["schema_version"]
        if type(version) is int and version > SCHEMA_VERSION:
            raise BundleError(
                f"{folder} has manifest schema {version}, this sts-export reads up to {SCHEMA_VERSION}; "
                "upgrade sts-export or export again"
            )
        if type(version) is not int or version < 1:
            raise ValueError("schema_version")
        if version < SCHEMA_VERSION:
            raise BundleError(f"{folder} was written by an older sts-export (manifest schema {version}); export it again")
        manifest = Manifest.from_json(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise BundleError(f"{file} is damaged; export the bundle again") from None
    except StsExportError as error:
        raise error if isinstance(error, BundleError) else BundleError(f"{file} is damaged ({error}); export again") from None
    bundle = Bundle(folder, manifest)
    for record in (*manifest.graph_files.values(), *manifest.companions):
        _check(folder, record, check_all=check_all)
    for record in manifest.weights.files:
        _check(bundle.weights_folder, record, check_all=check_all)
    return bundle


def _check(folder: Path, record: FileRecord, *, check_all: bool) -> None:
    file = folder / record.file
    try:
        size = file.stat().st_size
    except OSError:
        raise BundleError(f"{file} is missing; restore it or export the bundle again") from None
    if size != record.size:
        raise BundleError(f"{file} was altered: {size} bytes instead of {record.size}; export the bundle again")
    if record.fingerprint is not None:
        from sts_export.checkpoints.safetensors_header import read_header

        try:
            same = read_header(file)[1] == record.fingerprint
        except CheckpointError:
            same = False
        if not same:
            raise BundleError(f"{file} was altered since the export that links to it; export the bundle again")
    if record.sha256 is not None and (check_all or size <= _HASH_ON_LOAD) and record_file(file).sha256 != record.sha256:
        raise BundleError(f"{file} was altered: its sha256 differs from the manifest; export the bundle again")
