"""Engines are refused where they do not fit, with the reason and the command that builds them again.

The engines here are files of a few bytes: what is tested is the record."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.bundle.records import record_file
from sts_export.errors import BundleError
from sts_export.tensorrt import record as module
from sts_export.tensorrt.device import Gpu
from sts_export.tensorrt.inventory import check_engines
from sts_export.tensorrt.record import (
    RECORD,
    BuildRecord,
    EngineRecord,
    PluginLibrary,
    bundle_digest,
    engines_folder,
    open_engines,
    read_record,
    this_platform,
    write_record,
)
from tests.support.bundles import GRAPHS

HERE = Gpu("NVIDIA Imaginary 9000", "sm_99", 1 << 34, 1 << 34)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 10.16.1 and a GPU."""
    monkeypatch.setattr(module, "load", lambda runtime: SimpleNamespace(__version__="10.16.1.11"))
    monkeypatch.setattr(module, "current_gpu", lambda: HERE)


@pytest.fixture
def built(bundle: Bundle, tmp_path: Path, machine: None) -> Bundle:
    """A copy of the bundle with engines for this machine."""
    copy = open_bundle(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    write_engines(copy, HERE.target)
    return copy


def write_engines(bundle: Bundle, target: str) -> Path:
    folder = engines_folder(bundle, "tensorrt", target)
    folder.mkdir(parents=True)
    engines = {}
    for name in GRAPHS:
        file = folder / f"{name}.engine"
        file.write_bytes(name.encode())
        digest = record_file(file).sha256
        assert digest is not None
        engines[name] = EngineRecord(file.name, len(name), digest, "key", 1.5, True, True, False)
    library = folder / "libsts_plugins.so"
    library.write_bytes(b"library")
    digest = record_file(library).sha256
    assert digest is not None
    plugins = PluginLibrary(library.name, digest)
    write_record(
        folder,
        BuildRecord("tensorrt", "10.16.1.11", target, HERE.name, this_platform(), bundle_digest(bundle), 4, plugins, engines),
    )
    return folder


def change(folder: Path, **fields: object) -> None:
    record = read_record(folder)
    assert record is not None
    write_record(folder, dataclasses.replace(record, **fields))  # type: ignore[arg-type]


def test_engines_that_fit_are_opened(built: Bundle) -> None:
    engines = open_engines(built, "tensorrt")
    assert engines.folder == built.folder / "engines" / "tensorrt" / "nvidia-imaginary-9000-sm_99"
    assert [engines.file(name).read_bytes().decode() for name in GRAPHS] == list(GRAPHS)
    assert engines.plugin_library == engines.folder / "libsts_plugins.so"
    assert engines.record == BuildRecord.from_json(json.loads(json.dumps(engines.record.to_json())))
    assert open_bundle(built.folder, check_all=True)  # engines do not make the bundle another one


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another-gpu": (
        lambda f: change(f, gpu="NVIDIA Other"),
        "built for NVIDIA Other, and the GPU here is NVIDIA Imaginary 9000",
    ),
    "another-tensorrt": (lambda f: change(f, tensorrt="10.3.0.26"), "built by tensorrt 10.3.0.26, and 10.16.1.11 is installed"),
    "another-bundle": (lambda f: change(f, bundle="0" * 64), "built from another export of the bundle"),
    "another-platform": (lambda f: change(f, platform="linux-aarch64"), "built on linux-aarch64"),
    "another-capability": (lambda f: change(f, target="sm_75", gpu=None), "they are for sm_75, and the GPU here is sm_99"),
    "another-runtime": (lambda f: change(f, runtime="tensorrt-rtx"), "they are for tensorrt-rtx"),
    "interrupted": (
        lambda f: change(f, graphs={name: engine for name, engine in read_record(f).graphs.items() if name != "llm_upper"}),  # type: ignore[union-attr]
        "the build did not finish (llm_upper missing)",
    ),
    "engine-missing": (lambda f: (f / "llm_lower.engine").unlink(), "llm_lower.engine is missing"),
    "engine-cut": (lambda f: (f / "llm_lower.engine").write_bytes(b"llm"), "was altered: 3 bytes instead of 9"),
    "plugins-missing": (lambda f: (f / "libsts_plugins.so").unlink(), "libsts_plugins.so is missing"),
    "plugins-altered": (lambda f: (f / "libsts_plugins.so").write_bytes(b"LIBRARY"), "libsts_plugins.so was altered"),
    "record-missing": (lambda f: (f / RECORD).unlink(), "build.json is missing or damaged"),
    "record-damaged": (lambda f: (f / RECORD).write_text("{"), "build.json is missing or damaged"),
    "record-of-another-version": (lambda f: (f / RECORD).write_text('{"schema_version": 99}'), "is missing or damaged"),
    "record-with-a-path": (
        lambda f: (f / RECORD).write_text((f / RECORD).read_text().replace("llm_lower.engine", "../llm_lower.engine")),
        "is missing or damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_engines_that_do_not_fit_are_refused(built: Bundle, damage: str) -> None:
    spoil, says = DAMAGES[damage]
    spoil(built.folder / "engines" / "tensorrt" / HERE.target)
    with pytest.raises(BundleError) as refused:
        open_engines(built, "tensorrt")
    message = str(refused.value)
    assert says in message
    assert f"sts-export build {built.folder} --runtime tensorrt" in message
    assert "\n" not in message


def test_portable_engines_are_for_ampere_and_later(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documented by TensorRT for RTX: portable from compute capability 8.0 on, and between operating systems."""
    folder = built.folder / "engines" / "tensorrt-rtx" / "portable"
    shutil.copytree(built.folder / "engines" / "tensorrt" / HERE.target, folder)
    change(folder, runtime="tensorrt-rtx", target="portable", gpu=None, platform="windows-amd64")
    assert open_engines(built, "tensorrt-rtx")
    monkeypatch.setattr(module, "current_gpu", lambda: Gpu("NVIDIA T4", "sm_75", 1, 1))
    with pytest.raises(BundleError, match="cannot run these graphs on sm_75"):
        open_engines(built, "tensorrt-rtx")


def test_of_several_the_one_that_fits_is_taken(built: Bundle) -> None:
    change(write_engines(built, "a-other-gpu-sm_90"), gpu="a other GPU")
    assert open_engines(built, "tensorrt").folder.name == HERE.target
    with pytest.raises(BundleError, match="a other GPU"):
        open_engines(built, "tensorrt", target="a-other-gpu-sm_90")


def test_no_engines(bundle: Bundle, machine: None) -> None:
    with pytest.raises(BundleError, match=r"has no tensorrt engines; build them: sts-export build"):
        open_engines(bundle, "tensorrt")


def test_a_foreign_bundle_under_the_same_name(built: Bundle, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """Engines copied into another bundle are not taken for its own."""
    other = open_bundle(shutil.copytree(bundles["llava_next"].folder, tmp_path / "other"))
    shutil.copytree(built.folder / "engines", other.folder / "engines")
    with pytest.raises(BundleError, match="another export"):
        open_engines(other, "tensorrt")


def test_inspect_compares_engines_with_their_sha256(built: Bundle) -> None:
    """Too large to hash at every start, where only their sizes are compared."""
    assert check_engines(built) == 5
    engine = built.folder / "engines" / "tensorrt" / HERE.target / "llm_lower.engine"
    engine.write_bytes(b"LLM_LOWER")
    assert open_engines(built, "tensorrt")
    with pytest.raises(BundleError, match=r"llm_lower\.engine was altered; build it again: .* --force"):
        check_engines(built)
    engine.unlink()
    with pytest.raises(BundleError, match=r"llm_lower\.engine is missing"):
        check_engines(built)
