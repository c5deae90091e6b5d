"""Graphs for a TensorRT that is not here: what is written into the bundle, what stays, and what is refused."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from sts_export import Pipeline
from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.errors import OutputError, RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.files import part_of
from sts_export.lowering.tensorrt import lower
from sts_export.tensorrt.inventory import command_files
from sts_export.tensorrt.portable import graphs as module
from sts_export.tensorrt.portable.graphs import NEWEST, GraphsRequest, summary, write_graphs
from tests.support.bundles import GRAPHS, KEEP, NEW, TEXT, export_to


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def elf(kind: int = 3, machine: int = 62, bits: int = 2, order: int = 1) -> bytes:
    """The header of an ELF file, from the System V ABI: e_ident, e_type, e_machine, e_version, then what does not matter."""
    return b"\x7fELF" + bytes([bits, order, 1]) + bytes(9) + struct.pack("<HHI", kind, machine, 1) + bytes(40)


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_what_is_written(bundle: Bundle, copy: Path) -> None:
    before = names(copy)
    report = write_graphs(GraphsRequest(copy, version="10.3.0.26"))
    written = {f"{name}.tensorrt-10.3.onnx" for name in GRAPHS}
    extra = {"inputs.py", "inputs.json", "inputs.npz", "with_plugins.py"}
    expected = written | {"engines/commands-tensorrt-10.3.sh"} | {f"engines/polygraphy/{name}" for name in extra}
    assert names(copy) - before == expected
    assert report.graphs == {name: f"{name}.tensorrt-10.3.onnx" for name in GRAPHS}
    assert (report.version, report.plugins, report.aliased_caches) == ("10.3", True, False)
    assert os.access(copy / report.commands, os.X_OK)
    for name in GRAPHS:
        graph = lower(bundle.graph_file(name).read_bytes(), (10, 3), plugins=True).graph
        assert (copy / report.graphs[name]).read_bytes() == graph
    assert not list(copy.rglob("*.part"))
    # The bundle is the same bundle: complete, unchanged, and ready to run.
    assert open_bundle(copy, check_all=True).manifest == bundle.manifest
    assert all((copy / name).read_bytes() == (bundle.folder / name).read_bytes() for name in before)
    assert Pipeline(copy, threads=1).generate("?", max_new_tokens=1).token_ids
    text = summary(report)
    assert "bash engines/commands-tensorrt-10.3.sh build" in text
    assert "needs libsts_plugins.so" in text and "bind two buffers" in text


def test_versions_lie_side_by_side(copy: Path) -> None:
    old = write_graphs(GraphsRequest(copy, version="10.3", use_plugins=False))
    content = {file: (copy / file).read_bytes() for file in (*old.graphs.values(), old.commands)}
    new = write_graphs(GraphsRequest(copy, version="11.1"))
    assert set(old.graphs.values()).isdisjoint(new.graphs.values()) and new.aliased_caches
    assert all((copy / file).read_bytes() == data for file, data in content.items())
    assert command_files(open_bundle(copy)) == ["engines/commands-tensorrt-10.3.sh", "engines/commands-tensorrt-11.1.sh"]
    again = write_graphs(GraphsRequest(copy, version="10.3", use_plugins=False))
    assert again == old and all((copy / file).read_bytes() == data for file, data in content.items())


@pytest.mark.parametrize("plugins", [True, False])
def test_plugin_nodes_or_none(copy: Path, plugins: bool) -> None:
    report = write_graphs(GraphsRequest(copy, version="10.3", use_plugins=plugins))
    for name in GRAPHS:
        model = onnx.load(str(copy / report.graphs[name]), load_external_data=False)
        used = [node.op_type for node in model.graph.node if node.domain == "sts"]
        expected = {"selector": ["RepulsionSelect"], "llm_lower": ["LastTokenTopK"]}.get(name, []) if plugins else []
        assert used == expected and not model.functions
    assert ("--dynamicPlugins" in (copy / report.commands).read_text()) == plugins


def test_weights_are_found_from_the_graph(copy: Path) -> None:
    """By path, as TensorRT's parser opens it: relative to the graph."""
    report = write_graphs(GraphsRequest(copy, version="10.3", use_plugins=False))
    for name, file in report.graphs.items():
        session = ort.InferenceSession(str(copy / file), providers=["CPUExecutionProvider"])
        contract = open_bundle(copy).manifest.graphs[name]
        assert [item.name for item in session.get_inputs()] == [spec.name for spec in contract.inputs]


@pytest.mark.parametrize(("machine", "number"), [("x86-64", 62), ("aarch64", 183)])
def test_a_given_library_goes_into_the_bundle(copy: Path, tmp_path: Path, machine: str, number: int) -> None:
    """It may be for another processor; nothing loads it here."""
    library = tmp_path / "libsts_plugins-there.so"
    library.write_bytes(elf(machine=number))
    for given in (library, library, copy / "libsts_plugins.so"):
        report = write_graphs(GraphsRequest(copy, version="10.3", plugins=str(given)))
        assert (report.plugins, report.library) == (True, machine)
        assert (copy / "libsts_plugins.so").read_bytes() == elf(machine=number)
    text = summary(report)
    assert f"libsts_plugins.so was copied into the bundle; it is for {machine} machines" in text
    assert "needs libsts_plugins.so" not in text and "built on the machine" not in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n" + bytes(64),
        elf(kind=1),
        elf(kind=2),
        elf(machine=40),
        elf(machine=243),
        elf(bits=1),
        elf(order=2),
    ],
    ids=["empty", "cut", "script", "object", "program", "arm", "riscv", "32-bit", "big-endian"],
)
def test_what_is_no_plugin_library(copy: Path, tmp_path: Path, content: bytes) -> None:
    before = names(copy)
    (tmp_path / "library.so").write_bytes(content)
    with pytest.raises(RequestError, match=r"library\.so is no shared library for Linux on x86-64 or aarch64; build it with"):
        write_graphs(GraphsRequest(copy, version="10.3", plugins=str(tmp_path / "library.so")))
    assert names(copy) == before


def test_newer_versions_are_taken_with_a_note(copy: Path) -> None:
    newest, newer = (write_graphs(GraphsRequest(copy, version=version)) for version in ("11.1", "12.0"))
    assert newest.notes == () and "note" not in summary(newest)
    assert (newer.version, newer.commands) == ("12.0", "engines/commands-tensorrt-12.0.sh")
    assert "note: TensorRT 12.0 is newer than 11.1, the newest version known; graphs are as for that one" in summary(newer)
    for name in GRAPHS:
        assert (copy / newer.graphs[name]).read_bytes() == (copy / newest.graphs[name]).read_bytes()


def test_tensorrt_for_rtx_takes_the_graphs_as_they_are(copy: Path) -> None:
    before = names(copy)
    report = write_graphs(GraphsRequest(copy, runtime="tensorrt-rtx"))
    assert report.graphs == {name: f"{name}.onnx" for name in GRAPHS}
    assert (report.version, report.plugins, report.aliased_caches) == (None, False, True)
    assert {Path(name).name for name in names(copy) - before} == {
        "commands-tensorrt-rtx.sh",
        "inputs.py",
        "inputs.json",
        "inputs.npz",
    }
    assert "export POLYGRAPHY_USE_TENSORRT_RTX=1" in (copy / report.commands).read_text()


def test_the_version_of_what_is_installed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda: ["tensorrt-rtx"])
    assert write_graphs(GraphsRequest(copy)).version == "{}.{}".format(*NEWEST)
    monkeypatch.setattr(module, "installed", lambda: ["tensorrt", "tensorrt-rtx"])
    monkeypatch.setattr(module, "load", lambda runtime: SimpleNamespace(__version__="10.13.3.9"))
    assert write_graphs(GraphsRequest(copy)).version == "10.13"


def test_a_bundle_without_room_for_a_prompt(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """It still gets its build commands; the comparison says why there is none."""
    bundle = export_to(checkpoints["llava"], tmp_path / "bundle", "float16", max_prompt_tokens=8, max_new_tokens=1)
    report = write_graphs(GraphsRequest(bundle.folder, version="10.3"))
    assert not (bundle.folder / "engines" / "polygraphy" / "inputs.npz").exists()
    text = (bundle.folder / report.commands).read_text()
    assert "no prompt of ours fits this bundle" in text and text.count("trtexec \\") == 4


@pytest.mark.parametrize("mode", ["link", "int8"])
def test_bundles_that_tensorrt_cannot_take(checkpoints: dict[str, Path], tmp_path: Path, mode: str) -> None:
    request = ExportRequest(
        str(checkpoints["llava"]),
        output=tmp_path / "bundle",
        keep=KEEP,
        max_prompt_tokens=TEXT,
        max_new_tokens=NEW,
        **({"weights": "link"} if mode == "link" else {"quantize": "int8"}),  # type: ignore[arg-type]
    )
    bundle = export(request)
    before = names(bundle.folder)
    message = {
        "link": "links to its weights, and TensorRT's parser takes weights only from the folder of the graph; export with",
        "int8": "has int8 weights, which are for ONNX Runtime on CPU only; export without --quantize",
    }[mode]
    with pytest.raises(RequestError, match=message):
        write_graphs(GraphsRequest(bundle.folder, version="10.3"))
    assert names(bundle.folder) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "10.2"}, "TensorRT 10.2 is too old: graphs are for 10.3 and later"),
        ({"version": "8.6.1"}, "TensorRT 8.6.1 is too old"),
        ({"version": "ten"}, "'ten' is not a TensorRT version"),
        ({"version": ""}, "'' is not a TensorRT version"),
        ({"plugins": "nowhere.so"}, "there is no plugin library nowhere.so"),
        ({"plugins": "x.so", "use_plugins": False}, "--plugins and --no-plugins contradict each other"),
        ({"max_batch": 0}, "--max-batch must be between 1 and 256, not 0"),
        ({"optimization_level": 6}, "--optimization-level must be between 0 and 5, not 6"),
        ({"workspace_mb": 0}, "--workspace must be at least 1 MB, not 0"),
        ({"runtime": "tensorrt-rtx", "version": "10.3"}, "TensorRT for RTX takes the bundle's own graphs and no plugins"),
    ],
)
def test_wrong_requests(copy: Path, options: dict[str, object], message: str) -> None:
    before = names(copy)
    with pytest.raises(RequestError, match=message):
        write_graphs(GraphsRequest(copy, **options))  # type: ignore[arg-type]
    assert names(copy) == before


def test_a_file_where_the_folder_has_to_be(copy: Path) -> None:
    """Refused for root too."""
    (copy / "engines").write_bytes(b"")
    before = names(copy)
    with pytest.raises(OutputError, match=r"cannot write to .*: File exists; check disk and permissions"):
        write_graphs(GraphsRequest(copy, version="10.3"))
    assert names(copy) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a device without room, is not here")
@pytest.mark.parametrize("full", ["engines/polygraphy/inputs.npz", "engines/commands-tensorrt-10.3.sh"])
@pytest.mark.parametrize("again", [False, True])
def test_a_full_disk_leaves_nothing_new(copy: Path, tmp_path: Path, full: str, again: bool) -> None:
    """What is there of another time stays as it was."""
    library = tmp_path / "library.so"
    library.write_bytes(elf())
    if again:
        write_graphs(GraphsRequest(copy, version="10.3", use_plugins=False))
    no_room = part_of(copy / full)
    no_room.parent.mkdir(parents=True, exist_ok=True)
    no_room.unlink(missing_ok=True)
    no_room.symlink_to("/dev/full")
    kept = {name: (copy / name).read_bytes() for name in names(copy)}
    with pytest.raises(OutputError, match=r"cannot write to .*: No space left on device; check disk and permissions"):
        write_graphs(GraphsRequest(copy, version="10.3", plugins=str(library)))
    assert {name: (copy / name).read_bytes() for name in names(copy)} == kept


def test_what_is_the_same_is_not_written_again(copy: Path) -> None:
    """Its time is what tells the commands which engines are older."""
    report = write_graphs(GraphsRequest(copy, version="10.3"))
    files = [copy / file for file in (*report.graphs.values(), report.commands)]
    for file in files:
        os.utime(file, (1, 1))
    write_graphs(GraphsRequest(copy, version="10.3"))
    assert [file.stat().st_mtime for file in files] == [1] * 5
    write_graphs(GraphsRequest(copy, version="10.3", max_batch=2))
    assert [file.stat().st_mtime == 1 for file in files] == [True] * 4 + [False]


def test_batches(copy: Path) -> None:
    text = (copy / write_graphs(GraphsRequest(copy, version="10.3", max_batch=7)).commands).read_text()
    (line,) = [line for line in text.splitlines() if "--maxShapes=input_ids" in line and ":7x1," in line]
    assert "write_index:7" in line and "key_cache.0:7x" in line
    assert np.load(copy / "engines" / "polygraphy" / "inputs.npz")["llm_lower_prefill/input_ids"].shape[0] == 1
