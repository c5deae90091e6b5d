"""`sts-export build` with TensorRT for RTX, which builds without a GPU; no engine is run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from sts_export.bundle.manifest import Bundle, Manifest, open_bundle
from sts_export.bundle.records import record_file
from sts_export.errors import BackendError, BundleError, OutputError, RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.lowering.tensorrt import LoweredGraph
from sts_export.tensorrt import build as module
from sts_export.tensorrt.build import BuildRequest, build
from sts_export.tensorrt.device import Gpu
from sts_export.tensorrt.profiles import Profile, profiles
from sts_export.tensorrt.record import RECORD, open_engines, read_record
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.bundles import GRAPHS, copy_of, export_to

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")


@pytest.fixture(scope="session")
def built(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with engines; no test may change it."""
    copy = copy_of(bundle, tmp_path_factory.mktemp("built"))
    build(BuildRequest(copy.folder, "tensorrt-rtx", max_batch=2))
    return copy


def test_four_engines_and_their_record(built: Bundle) -> None:
    engines = open_engines(built, "tensorrt-rtx")
    record = engines.record
    assert engines.folder == built.folder / "engines" / "tensorrt-rtx" / "portable"
    assert (record.tensorrt, record.max_batch, record.gpu, record.plugins) == (rtx.__version__, 2, None, None)
    assert tuple(record.graphs) == GRAPHS
    for name, engine in record.graphs.items():
        file = engines.file(name)
        assert (record_file(file).size, record_file(file).sha256) == (engine.size, engine.sha256)
        assert engine.size > 1000 and engine.seconds > 0
        assert engine.aliased_caches and not engine.plugins
    assert not list(built.folder.rglob("*.part"))
    assert open_bundle(built.folder, check_all=True)


def test_nothing_is_built_twice(built: Bundle, tmp_path: Path) -> None:
    bundle = copy_of(built, tmp_path)
    phases: list[tuple[str, str]] = []
    report = build(
        BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2), lambda graph, phase, *_: phases.append((graph, phase))
    )
    assert report.reused == GRAPHS
    assert phases == [(name, "up to date") for name in GRAPHS]
    # Another batch size concerns the halves of the LLM only.
    assert build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=1)).reused == ("vision_encoder", "selector")
    assert open_engines(bundle, "tensorrt-rtx").record.max_batch == 1


def test_what_is_missing_or_forced_is_built_again(built: Bundle, tmp_path: Path) -> None:
    bundle = copy_of(built, tmp_path)
    engine = bundle.folder / "engines" / "tensorrt-rtx" / "portable" / "selector.engine"
    engine.write_bytes(b"cut")
    report = build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2))
    assert set(report.reused) == {"vision_encoder", "llm_lower", "llm_upper"}
    assert engine.stat().st_size == report.record.graphs["selector"].size > 1000
    folder = engine.parent
    assert (folder.parent / "timing.cache").is_file()
    assert build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2, force=True)).reused == ()


def test_progress_comes_from_tensorrt(bundle: Bundle, tmp_path: Path) -> None:
    said: list[tuple[str, str, int, int]] = []
    build(BuildRequest(copy_of(bundle, tmp_path).folder, "tensorrt-rtx"), lambda *step: said.append(step))
    assert {graph for graph, *_ in said} == set(GRAPHS)
    for name in GRAPHS:
        steps = [(done, total) for graph, _, done, total in said if graph == name]
        assert len(steps) > 2 and all(0 <= done <= total for done, total in steps)
        assert steps[-1][0] == steps[-1][1]


def test_a_target_is_built_for_ahead(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_of(bundle, tmp_path)
    report = build(BuildRequest(copy.folder, "tensorrt-rtx", target="sm_89"))
    assert report.folder.name == "sm_89"
    assert open_engines(copy, "tensorrt-rtx")
    monkeypatch.setattr("sts_export.tensorrt.record.current_gpu", lambda: Gpu("NVIDIA H200", "sm_90", 1, 1))
    with pytest.raises(BundleError, match="they are for sm_89, and the GPU here is sm_90"):
        open_engines(copy, "tensorrt-rtx")


def test_linked_weights_are_found(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """TensorRT refuses paths out of the graph's folder; the builder tells it the weights' folder instead."""
    bundle = export_to(checkpoints["llava"], tmp_path / "bundle", "float32", weights="link")
    report = build(BuildRequest(bundle.folder, "tensorrt-rtx"))
    assert tuple(report.record.graphs) == GRAPHS
    assert all(engine.decomposed_attention for engine in report.record.graphs.values())  # no fused kernel in float32
    weights = sum(file.stat().st_size for file in checkpoints["llava"].glob("*.safetensors"))
    assert sum(engine.size for engine in report.record.graphs.values()) > 0.9 * weights


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_other_families(checkpoints: dict[str, Path], tmp_path: Path, family: str, dtype: str) -> None:
    bundle = export_to(checkpoints[family], tmp_path / "bundle", dtype)
    assert tuple(build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2)).record.graphs) == GRAPHS


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_demo_model(tmp_path: Path, dtype: str) -> None:
    bundle = export(ExportRequest("demo", tmp_path / "bundle", budget="64", dtype=dtype))
    assert tuple(build(BuildRequest(bundle.folder, "tensorrt-rtx")).record.graphs) == GRAPHS


def test_attention_without_a_fused_kernel_is_decomposed(tmp_path: Path) -> None:
    """TensorRT for RTX 1.7 has no 16-bit kernel for a decoder of two heads; the vision tower's it has."""
    checkpoint = write_random_llava(tmp_path / "checkpoint", RandomLlava(layers=2, vision_width=64, heads=2, kv_heads=2))
    record = build(BuildRequest(export_to(checkpoint, tmp_path / "bundle", "float16").folder, "tensorrt-rtx")).record
    assert {name: engine.decomposed_attention for name, engine in record.graphs.items()} == {
        "vision_encoder": False,
        "selector": False,
        "llm_lower": True,
        "llm_upper": True,
    }


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")])
def test_an_interrupted_build_goes_on_where_it_stopped(bundle: Bundle, tmp_path: Path, number: int, said: str) -> None:
    copy = copy_of(bundle, tmp_path)
    folder = copy.folder / "engines" / "tensorrt-rtx" / "portable"
    command = [sys.executable, "-m", "sts_export.cli", "build", str(copy.folder), "--runtime", "tensorrt-rtx"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while ((record := read_record(folder)) is None or not record.graphs) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert record is not None
    done = read_record(folder)
    assert done is not None and "vision_encoder" in done.graphs and len(done.graphs) < 4
    assert process.returncode == 128 + number
    assert errors.strip().splitlines()[-1] == f"sts-export: {said}"
    assert not list(copy.folder.rglob("*.part"))
    with pytest.raises(BundleError, match=r"the build did not finish \(.*llm_upper missing\)"):
        open_engines(copy, "tensorrt-rtx")
    assert "vision_encoder" in build(BuildRequest(copy.folder, "tensorrt-rtx")).reused
    assert open_engines(copy, "tensorrt-rtx")


def replace_worker(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("sts_export.tensorrt.process.python_command", lambda _: [sys.executable, "-c", program])


def test_a_failed_build_leaves_no_folder(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_of(bundle, tmp_path)
    replace_worker(monkeypatch, "import sys; sys.exit(7)")
    with pytest.raises(BackendError, match=r"exit code 7\); please report this"):
        build(BuildRequest(copy.folder, "tensorrt-rtx"))
    assert not (copy.folder / "engines").exists()


def test_nothing_is_written_where_all_is_up_to_date(built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle on a read-only disk."""
    bundle = copy_of(built, tmp_path)
    folder = bundle.folder / "engines" / "tensorrt-rtx" / "portable"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr("os.access", lambda *_: False)

    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "write_record", read_only)
    monkeypatch.setattr(module, "write_graphs", read_only)
    report = build(BuildRequest(bundle.folder, "tensorrt-rtx"))
    assert report.reused == GRAPHS and report.record.max_batch == 2  # as many as before
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_one_build_at_a_time(built: Bundle, tmp_path: Path) -> None:
    bundle = copy_of(built, tmp_path)
    folder = bundle.folder / "engines" / "tensorrt-rtx" / "portable"
    with FileLock(folder / ".lock"), pytest.raises(RequestError, match="another build is at work"):
        build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2))
    assert build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2)).reused == GRAPHS


def test_an_interrupted_rebuild_keeps_what_was_up_to_date(
    built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_of(built, tmp_path)

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    (bundle.folder / "engines" / "tensorrt-rtx" / "portable" / "vision_encoder.engine").unlink()
    monkeypatch.setattr(module, "run_worker", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2))
    monkeypatch.undo()
    assert build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2)).reused == ("selector", "llm_lower", "llm_upper")


def test_another_lowering_makes_another_engine(built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer sts-export may write other graphs for TensorRT from the same bundle."""
    bundle = copy_of(built, tmp_path)
    monkeypatch.setattr(module, "lower", lambda graph, *_, **__: LoweredGraph(graph + b"\x00", True))
    assert build(BuildRequest(bundle.folder, "tensorrt-rtx", max_batch=2)).reused == ()


def is_worker(process: psutil.Process) -> bool:
    """Libraries start programs of their own, which are short-lived."""
    try:
        return any("sts_export.tensorrt.worker" in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def test_the_worker_ends_with_a_killed_parent(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_of(bundle, tmp_path)
    command = [sys.executable, "-m", "sts_export.cli", "build", str(copy.folder), "--runtime", "tensorrt-rtx"]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 120
    while not workers and time.monotonic() < deadline:
        workers = [child for child in psutil.Process(parent.pid).children() if is_worker(child)]
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert workers and not alive
    (copy.folder / "engines" / "tensorrt-rtx" / "portable" / ".selector.engine.1.part").write_bytes(b"half")
    assert build(BuildRequest(copy.folder, "tensorrt-rtx"))
    assert not list(copy.folder.rglob("*.part"))


def test_a_full_disk_is_not_taken_for_a_lack_of_memory(bundle: Bundle, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the disk: manifest and record fit, engines do not."""
    copy = copy_of(bundle, tmp_path)
    command = f"ulimit -f 8; exec {sys.executable} -m sts_export.cli build {copy.folder} --runtime tensorrt-rtx"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("sts-export: cannot write the engine of vision_encoder.onnx: File too large")
    assert done.stderr.count("\n") == 1 and not list(copy.folder.rglob("*.part"))


def test_more_tokens_than_tensorrt_sorts(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sts_export.tensorrt.build_options.TOPK_LIMIT", 11)
    bundle = export_to(checkpoints["llava"], tmp_path / "bundle", "float16")
    with pytest.raises(RequestError, match="stage 1 keeps up to 12 tokens of a picture, and TensorRT sorts at most 11"):
        build(BuildRequest(bundle.folder, "tensorrt-rtx"))


def test_a_worker_that_dies_is_reported(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory kills the worker, not us."""
    copy = copy_of(bundle, tmp_path)
    replace_worker(monkeypatch, "import os, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)")
    with pytest.raises(BackendError, match=r"building vision_encoder ended without a result \(exit code -9: last words\)"):
        build(BuildRequest(copy.folder, "tensorrt-rtx"))
    assert not (copy.folder / "engines").exists()


def test_a_graph_that_tensorrt_refuses(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_of(bundle, tmp_path)

    def upside_down(manifest: Manifest, name: str, max_batch: int) -> list[Profile]:
        sizes = profiles(manifest, name, max_batch)
        return [dict.fromkeys(sizes[0], (3, 2, 1))] if name == "vision_encoder" else sizes

    monkeypatch.setattr(module, "profiles", upside_down)
    with pytest.raises(BackendError, match="vision_encoder") as refused:
        build(BuildRequest(copy.folder, "tensorrt-rtx"))
    assert "\n" not in str(refused.value)


def wrong(original: Bundle, **options: object) -> BuildRequest:
    return dataclasses.replace(BuildRequest(original.folder, "tensorrt-rtx"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runtime": "openvino"}, "unknown runtime 'openvino': choose one of tensorrt, tensorrt-rtx"),
        ({"target": "sm_90"}, "does not build for 'sm_90': choose one of sm_80, sm_86"),
        ({"target": "../x"}, "does not build for '../x'"),
        ({"max_batch": 0}, "--max-batch must be between 1 and 256, not 0"),
        ({"max_batch": 1000}, "--max-batch must be between 1 and 256, not 1000"),
        ({"optimization_level": 6}, "--optimization-level must be between 0 and 5, not 6"),
        ({"workspace_mb": 0}, "--workspace must be at least 1 MB, not 0"),
        ({"plugins": "libsts_plugins.so"}, "TensorRT for RTX takes no plugins"),
        ({"bundle": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_requests(bundle: Bundle, options: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError) as refused:
        build(wrong(bundle, **options))
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not (bundle.folder / "engines").exists()


def test_quantized_bundles_are_for_onnx_runtime(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bundle = export_to(checkpoints["llava"], tmp_path / "bundle", "float32", quantize="int8")
    with pytest.raises(RequestError, match="int8 weights, which are for ONNX Runtime on CPU only"):
        build(wrong(bundle))


def test_memory_is_checked_before_anything_is_built(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_of(bundle, tmp_path)
    monkeypatch.setattr(module, "current_gpu", lambda: Gpu("NVIDIA Tiny", "sm_89", 1 << 20, 1 << 20))
    with pytest.raises(BackendError, match="not enough GPU memory"):
        build(BuildRequest(copy.folder, "tensorrt-rtx"))
    assert not (copy.folder / "engines").exists()
    assert build(BuildRequest(copy.folder, "tensorrt-rtx", ignore_memory=True)).record.gpu is None


def test_a_file_in_the_place_of_the_folder(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_of(bundle, tmp_path)
    (copy.folder / "engines").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        build(BuildRequest(copy.folder, "tensorrt-rtx"))


def test_the_record_is_json(built: Bundle) -> None:
    data = json.loads((built.folder / "engines" / "tensorrt-rtx" / "portable" / RECORD).read_text())
    assert data["schema_version"] == 1 and data["runtime"] == "tensorrt-rtx"
