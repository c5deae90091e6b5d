"""Graphs for a TensorRT that is not here: what is written into the bundle, what stays, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from sts_export import Pipeline
from sts_export.bundle import GRAPHS, Bundle, open_bundle
from sts_export.errors import OutputError, RequestError
from sts_export.exporter import ExportRequest, export
from sts_export.tensorrt import graphs as module
from sts_export.tensorrt.graphs import NEWEST, GraphsRequest, summary, write_graphs
from sts_export.tensorrt.inventory import command_files
from sts_export.tensorrt.lowering import lower
from tests.tensorrt.conftest import KEEP, NEW, TEXT, export_to


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


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


def test_a_given_library_goes_into_the_bundle(copy: Path, tmp_path: Path) -> None:
    """It may be for another processor; nothing loads it here."""
    library = tmp_path / "libsts_plugins-aarch64.so"
    library.write_bytes(b"for another machine")
    for _ in range(2):
        report = write_graphs(GraphsRequest(copy, version="10.3", plugins=str(library)))
        assert report.plugins and (copy / "libsts_plugins.so").read_bytes() == b"for another machine"
    write_graphs(GraphsRequest(copy, version="10.3", plugins=str(copy / "libsts_plugins.so")))
    assert (copy / "libsts_plugins.so").read_bytes() == b"for another machine"


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
    bundle = export_to(checkpoints["llava"], tmp_path / "bundle", "float16", max_prompt_tokens=3, max_new_tokens=1)
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


def test_a_bundle_that_cannot_be_written_to(copy: Path) -> None:
    """A file where the folder has to be: refused for root too."""
    (copy / "engines").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write to .*: File exists; make the bundle writable"):
        write_graphs(GraphsRequest(copy, version="10.3"))


def test_batches(copy: Path) -> None:
    text = (copy / write_graphs(GraphsRequest(copy, version="10.3", max_batch=7)).commands).read_text()
    (line,) = [line for line in text.splitlines() if "--maxShapes=input_ids" in line and ":7x1," in line]
    assert "write_index:7" in line and "key_cache.0:7x" in line
    assert np.load(copy / "engines" / "polygraphy" / "inputs.npz")["llm_lower_prefill/input_ids"].shape[0] == 1
