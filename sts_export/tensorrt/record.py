"""Built engines of a bundle, and the record that says what they were built from and for.

    BUNDLE/engines/<runtime>/<target>/{<graph>.engine, build.json[, libsts_plugins.so]}

An engine is refused, with the command that rebuilds it, where the record does not fit the bundle, the installed TensorRT or
the GPU: TensorRT itself would fail late, or not at all.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import MANIFEST, Bundle
from sts_export.bundle.records import record_file
from sts_export.errors import BundleError
from sts_export.files import replace_json
from sts_export.tensorrt.device import Gpu, current_gpu
from sts_export.tensorrt.runtimes import RUNTIMES, Runtime, load, version_of

SCHEMA_VERSION = 1
RECORD = "build.json"
ENGINES = "engines"
PORTABLE = "portable"  # target of TensorRT for RTX: any GPU from Ampere on
TURING = "sm_75"


@dataclass(frozen=True)
class EngineRecord:
    """One engine.

    Args:
        key: digest of everything the engine was built from; an engine with the same key need not be built again.
        seconds: time of the build.
        aliased_caches: cache outputs are bound to the address of their inputs; else the runtime swaps two buffers.
        plugins: the engine needs the plugin library.
        decomposed_attention: attention was built from primitive operators, for lack of a fused kernel.
    """

    file: str
    size: int
    sha256: str
    key: str
    seconds: float
    aliased_caches: bool
    plugins: bool
    decomposed_attention: bool


@dataclass(frozen=True)
class PluginLibrary:
    """A copy of the plugin library beside the engines that need it."""

    file: str
    sha256: str


@dataclass(frozen=True)
class BuildRecord:
    """What the engines of one folder are for.

    Args:
        tensorrt: full version of the module.
        target: name of the folder.
        gpu: the GPU they were built on and for; None if they were built ahead of time, for any or for the target's capability.
        platform: such as ``linux-x86_64``.
        bundle: sha256 of the bundle's manifest.
        max_batch: requests that may run together.
        graphs: engines that are done, by graph.
    """

    runtime: Runtime
    tensorrt: str
    target: str
    gpu: str | None
    platform: str
    bundle: str
    max_batch: int
    plugins: PluginLibrary | None
    graphs: dict[str, EngineRecord]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BuildRecord:
        """Inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: the record is damaged or of another version.
        """
        if data["schema_version"] != SCHEMA_VERSION or data["runtime"] not in RUNTIMES:
            raise ValueError("schema_version")
        fields = {key: item for key, item in data.items() if key != "schema_version"}
        plugins = None if data["plugins"] is None else PluginLibrary(**data["plugins"])
        graphs = {name: EngineRecord(**item) for name, item in data["graphs"].items()}
        record = cls(**{**fields, "plugins": plugins, "graphs": graphs})
        files = [engine.file for engine in graphs.values()] + ([plugins.file] if plugins else [])
        if not all(Path(file).name == file for file in files) or type(record.max_batch) is not int:
            raise ValueError("files")
        return record


@dataclass(frozen=True)
class EngineSet:
    """The engines of all graphs, checked against this machine."""

    folder: Path
    record: BuildRecord

    def file(self, graph: str) -> Path:
        return self.folder / self.record.graphs[graph].file

    @property
    def plugin_library(self) -> Path | None:
        return None if self.record.plugins is None else self.folder / self.record.plugins.file


def this_platform() -> str:
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def bundle_digest(bundle: Bundle) -> str:
    digest = record_file(bundle.folder / MANIFEST).sha256
    assert digest is not None
    return digest


def engines_folder(bundle: Bundle, runtime: Runtime, target: str) -> Path:
    return bundle.folder / ENGINES / runtime / target


def write_record(folder: Path, record: BuildRecord) -> None:
    """Replace the record in one step."""
    replace_json(folder / RECORD, record.to_json())


def read_record(folder: Path) -> BuildRecord | None:
    """The record of a folder; None if there is none that this version reads."""
    try:
        return BuildRecord.from_json(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def open_engines(bundle: Bundle, runtime: Runtime, *, target: str | None = None) -> EngineSet:
    """The engines that fit this machine.

    Args:
        target: name of the folder; None takes the one that fits.

    Raises:
        BundleError: there are none, or those there are do not fit or are damaged: says why and how to build them.
        BackendError: the runtime's module is not installed.
    """
    command = f"sts-export build {bundle.folder} --runtime {runtime}"
    root = bundle.folder / ENGINES / runtime
    folders = [root / target] if target else sorted(path for path in root.glob("*") if path.is_dir())
    if not any(folder.is_dir() for folder in folders):
        raise BundleError(
            f"{bundle.folder} has no {runtime} engines{f' for {target}' if target else ''}; build them: {command}"
        )
    version, gpu, digest = version_of(load(runtime)), current_gpu(), bundle_digest(bundle)
    reasons = []
    for folder in folders:
        reason = _refusal(folder, bundle, runtime, version, gpu, digest)
        if reason is None:
            record = read_record(folder)
            assert record is not None
            return EngineSet(folder, record)
        reasons.append(f"{folder.name}: {reason}")
    raise BundleError(f"no {runtime} engines of {bundle.folder} fit: {'; '.join(reasons)}; build them again: {command}")


def _refusal(folder: Path, bundle: Bundle, runtime: Runtime, version: str, gpu: Gpu | None, digest: str) -> str | None:
    """Why the engines of a folder cannot be used here; None if they can."""
    record = read_record(folder)
    if record is None:
        return f"{RECORD} is missing or damaged"
    missing = [name for name in bundle.manifest.graphs if name not in record.graphs]
    checks = (
        (record.runtime != runtime, f"they are for {record.runtime}"),
        (record.bundle != digest, "they were built from another export of the bundle"),
        (record.tensorrt != version, f"they were built by {runtime} {record.tensorrt}, and {version} is installed"),
        (
            # Engines of TensorRT for RTX are portable: its documentation, "CPU-Only AOT and TensorRT-RTX Engines".
            runtime == "tensorrt" and record.platform != this_platform(),
            f"they were built on {record.platform}, and this is {this_platform()}",
        ),
        (
            record.gpu is not None and gpu is not None and record.gpu != gpu.name,
            f"they were built for {record.gpu}, and the GPU here is {gpu.name if gpu else ''}",
        ),
        (
            record.target.startswith("sm_") and gpu is not None and record.target != gpu.capability,
            f"they are for {record.target}, and the GPU here is {gpu.capability if gpu else ''}",
        ),
        (
            record.target == PORTABLE and gpu is not None and gpu.capability == TURING,
            f"TensorRT for RTX cannot run these graphs on {TURING}; take --backend onnxruntime-cuda",
        ),
        (bool(missing), f"the build did not finish ({', '.join(missing)} missing)"),
    )
    for wrong, reason in checks:
        if wrong:
            return reason
    files: list[tuple[str, int | None, str]] = [(item.file, item.size, item.sha256) for item in record.graphs.values()]
    if record.plugins is not None:
        files.append((record.plugins.file, None, record.plugins.sha256))
    for name, size, _ in files:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if size is not None and file.stat().st_size != size:
            return f"{name} was altered: {file.stat().st_size} bytes instead of {size}"
    if record.plugins is not None and record_file(folder / record.plugins.file).sha256 != record.plugins.sha256:
        return f"{record.plugins.file} was altered"
    return None
