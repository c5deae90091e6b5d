"""What the builder asks of TensorRT proper, which cannot run here: a fake records it."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sts_export.bundle.manifest import Bundle
from sts_export.errors import BackendError
from sts_export.tensorrt.worker import BuildJob, BuildResult, NoEngineError, build_engine
from sts_export.testing.fakes.builder import FakeTensorRT

SIZES = {"input_ids": [[1, 1], [1, 8], [2, 60]]}


def job(bundle: Bundle, output: Path, name: str = "llm_lower", **options: Any) -> BuildJob:
    plain = BuildJob(
        runtime="tensorrt",
        graph=str(bundle.graph_file(name)),
        weights_folder=str(bundle.weights_folder),
        output=str(output / f"{name}.engine"),
        plugins=None,
        decomposable=False,
        profiles=[SIZES],
    )
    return dataclasses.replace(plain, **options)


def run(trt: FakeTensorRT, work: BuildJob) -> tuple[BuildResult, list[tuple[str, int, int]]]:
    said: list[tuple[str, int, int]] = []
    return build_engine(work, trt.module(), lambda *step: said.append(step)), said


def test_the_library_is_registered_before_the_graph_is_parsed(bundle: Bundle, tmp_path: Path) -> None:
    trt = FakeTensorRT()
    result, _ = run(trt, job(bundle, tmp_path, plugins="libsts_plugins.so"))
    assert trt.events == ["load libsts_plugins.so", "parse", "build"]
    assert result == BuildResult("10.16.1.11", True)
    assert trt.graph is not None and not trt.graph.functions
    (stage2,) = [node for node in trt.graph.graph.node if node.domain == "sts"]
    attributes = {item.name: item.s.decode() for item in stage2.attribute if item.name.startswith("plugin")}
    assert (stage2.op_type, attributes) == ("LastTokenTopK", {"plugin_namespace": "sts", "plugin_version": "1"})
    assert trt.path == str(bundle.weights_folder / "llm_lower.onnx")
    assert (tmp_path / "llm_lower.engine").read_bytes() == b"engine"
    run(trt, job(bundle, tmp_path, plugins="libsts_plugins.so"))
    assert trt.events.count("load libsts_plugins.so") == 1  # TensorRT complains about a second registration


def test_without_a_library_the_function_body_stays(bundle: Bundle, tmp_path: Path) -> None:
    trt = FakeTensorRT()
    run(trt, job(bundle, tmp_path))
    assert trt.events == ["parse", "build"]
    assert trt.graph is not None and [function.name for function in trt.graph.functions] == ["LastTokenTopK"]


def test_an_old_tensorrt_gets_basic_operators(bundle: Bundle, tmp_path: Path) -> None:
    trt = FakeTensorRT(version="10.3.0.26")
    result, _ = run(trt, job(bundle, tmp_path, plugins="libsts_plugins.so", decomposable=True))
    assert result == BuildResult("10.3.0.26", False)
    assert trt.graph is not None
    operators = {node.op_type for node in trt.graph.graph.node}
    assert "LastTokenTopK" in operators and "Softmax" in operators
    assert not operators & {"Attention", "TensorScatter", "RotaryEmbedding", "RMSNormalization"}
    assert trt.graph.opset_import[0].version <= 20


@pytest.mark.parametrize(("version", "flags"), [("10.3.0.26", 2), ("10.16.1.11", 2), ("11.1.0.5", 0)])
def test_networks_are_strongly_typed(bundle: Bundle, tmp_path: Path, version: str, flags: int) -> None:
    trt = FakeTensorRT(version=version)
    run(trt, job(bundle, tmp_path))
    assert trt.flags == flags


def test_tf32_is_off(bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT rounds float32 products to ten bits unless told otherwise: stage 1 would keep other tokens."""
    trt = FakeTensorRT()
    run(trt, job(bundle, tmp_path))
    assert trt.set_flags == set()


@pytest.mark.parametrize("decomposable", [False, True])
def test_attention_may_be_decomposed_where_that_is_asked_for(bundle: Bundle, tmp_path: Path, decomposable: bool) -> None:
    trt = FakeTensorRT()
    run(trt, job(bundle, tmp_path, decomposable=decomposable))
    assert trt.attention.decomposable == decomposable


@pytest.mark.parametrize(
    ("version", "decomposable", "helps"),
    [("10.16.1.11", False, True), ("10.16.1.11", True, False), ("10.3.0.26", False, False)],
)
def test_a_failure_says_whether_decomposing_may_help(
    bundle: Bundle, tmp_path: Path, version: str, decomposable: bool, helps: bool
) -> None:
    """TensorRT 10.3 has no attention layers at all."""
    with pytest.raises(NoEngineError) as failed:
        run(FakeTensorRT(version=version, builds=False), job(bundle, tmp_path, decomposable=decomposable))
    assert failed.value.decomposable == helps


def test_a_timing_cache_that_cannot_be_written_does_not_matter(bundle: Bundle, tmp_path: Path) -> None:
    run(FakeTensorRT(), job(bundle, tmp_path, timing_cache=str(tmp_path / "nowhere" / "timing.cache")))
    assert (tmp_path / "llm_lower.engine").read_bytes() == b"engine"


def test_sizes_and_settings(bundle: Bundle, tmp_path: Path) -> None:
    trt = FakeTensorRT()
    run(trt, job(bundle, tmp_path, profiles=[SIZES, SIZES], optimization_level=4, workspace=1 << 30))
    assert trt.profiles == [{"input_ids": ((1, 1), (1, 8), (2, 60))}] * 2
    assert (trt.settings.level, trt.settings.workspace) == (4, 1 << 30)


def test_top_level_phases_are_reported(bundle: Bundle, tmp_path: Path) -> None:
    _, said = run(FakeTensorRT(), job(bundle, tmp_path))
    assert said == [("reading", 0, 1), ("Building engine", 0, 2), ("Building engine", 1, 2), ("Building engine", 2, 2)]


def test_the_timing_cache_is_kept_and_a_foreign_one_replaced(bundle: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    work = job(bundle, tmp_path, timing_cache=str(cache))
    first = FakeTensorRT()
    run(first, work)
    assert (first.caches, cache.read_bytes()) == ([b""], b"timings")
    second = FakeTensorRT()
    run(second, work)
    assert second.caches == [b"timings"]
    foreign = FakeTensorRT(cache_fits=False)
    run(foreign, work)
    assert foreign.caches == [b"timings", b""]


@pytest.mark.parametrize(("number", "fits"), [(100300, True), (101601, True), (110100, False), (80601, False)])
def test_a_library_for_another_major_version_is_refused(bundle: Bundle, tmp_path: Path, number: int, fits: bool) -> None:
    """TensorRT would load it, and crash at its first message."""
    library, source = tmp_path / "lib" / "libsts_plugins.so", tmp_path / "version.c"
    library.parent.mkdir()
    source.write_text(f"int stsPluginsTensorRTVersion(void) {{ return {number}; }}")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    source.unlink()
    trt, work = FakeTensorRT(version="10.16.1.11"), job(bundle, tmp_path, plugins=str(library))
    if fits:
        run(trt, work)
    else:
        with pytest.raises(
            BackendError, match=rf"was built for TensorRT {number // 10000}\..* and 10\.16 is installed; build it"
        ):
            run(trt, work)
    assert ("parse" in trt.events) == fits


@pytest.mark.parametrize(
    ("trt", "says"),
    [
        (
            FakeTensorRT(parses=False),
            "does not take llm_lower.onnx: In node 7 with name: x and operator: Attention (parseNode)",
        ),
        (FakeTensorRT(builds=False), "does not build llm_lower.onnx: [optimizer] Could not find any implementation for node"),
        (
            FakeTensorRT(loads=False),
            "cannot be used as plugin library: it lacks RepulsionSelect and LastTokenTopK; build it with",
        ),
    ],
)
def test_failures_are_one_line_and_leave_nothing(bundle: Bundle, tmp_path: Path, trt: FakeTensorRT, says: str) -> None:
    with pytest.raises(BackendError) as failed:
        run(trt, job(bundle, tmp_path, plugins="libsts_plugins.so"))
    assert says in str(failed.value) and "\n" not in str(failed.value)
    assert not list(tmp_path.iterdir())
