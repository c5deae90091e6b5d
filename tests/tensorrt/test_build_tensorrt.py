"""`sts-export build` for TensorRT proper, as far as that goes without it: module, GPU and worker are faked."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.errors import BackendError, RequestError
from sts_export.native import libraries
from sts_export.tensorrt import build as module
from sts_export.tensorrt.build import BuildRequest, build
from sts_export.tensorrt.build_report import summary, warnings
from sts_export.tensorrt.device import Gpu
from sts_export.tensorrt.plugins import find_library
from sts_export.tensorrt.record import open_engines
from sts_export.tensorrt.worker import BuildJob
from tests.support.bundles import GRAPHS
from tests.support.shared_libraries import AARCH64, OTHER_MACHINE, X86_64, compiled, headers_only

PLUGINS = headers_only(["getCreators"])
OTHER_PLUGINS = headers_only(["getCreators"], end=b"another build")
ORIN = Gpu("Orin (nvgpu)", "sm_87", 64 << 30, 60 << 30)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[BuildJob]:
    """A Jetson with TensorRT 10.3, whose worker writes a small file."""
    done: list[BuildJob] = []

    def work(name: str, job: BuildJob, progress: object) -> bool:
        done.append(job)
        Path(job.output).write_bytes(f"engine of {name}".encode())
        return False

    for path in ("build", "record"):
        monkeypatch.setattr(f"sts_export.tensorrt.{path}.load", lambda runtime: SimpleNamespace(__version__="10.3.0.30"))
        monkeypatch.setattr(f"sts_export.tensorrt.{path}.current_gpu", lambda: ORIN)
    monkeypatch.setattr(module, "run_worker", work)
    return done


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(bundle.folder, tmp_path / "bundle"))


@pytest.fixture
def library(tmp_path: Path) -> str:
    (tmp_path / "libsts_plugins.so").write_bytes(PLUGINS)
    return str(tmp_path / "libsts_plugins.so")


def test_the_plugin_library_goes_along_with_the_engines(copy: Bundle, library: str, jobs: list[BuildJob]) -> None:
    report = build(BuildRequest(copy.folder, "tensorrt", plugins=library))
    assert report.folder == copy.folder / "engines" / "tensorrt" / "orin-nvgpu-sm_87"
    engines = open_engines(copy, "tensorrt")
    assert engines.plugin_library is not None and engines.plugin_library.read_bytes() == PLUGINS
    with_plugins = [Path(job.graph).stem for job in jobs if job.plugins == str(engines.plugin_library)]
    assert with_plugins == ["selector", "llm_lower"]
    assert not warnings(report)
    table = summary(report)
    assert "for Orin (nvgpu), batches up to 1" in table and table.count("with plugins") == 2
    assert table.count("two buffers for each cache") == 2  # TensorRT 10.3 has no in-place caches


def test_another_library_makes_other_engines(copy: Bundle, library: str, jobs: list[BuildJob]) -> None:
    build(BuildRequest(copy.folder, "tensorrt", plugins=library))
    assert build(BuildRequest(copy.folder, "tensorrt", plugins=library)).reused == GRAPHS
    Path(library).write_bytes(OTHER_PLUGINS)
    others = ("vision_encoder", "llm_upper")  # have no pruning stage
    assert build(BuildRequest(copy.folder, "tensorrt", plugins=library)).reused == others
    report = build(BuildRequest(copy.folder, "tensorrt", use_plugins=False))
    assert report.reused == others and report.record.plugins is None


def test_a_library_in_use_is_left_alone(copy: Bundle, library: str, jobs: list[BuildJob]) -> None:
    """A server that has it mapped would die if it were written over."""
    placed = build(BuildRequest(copy.folder, "tensorrt", plugins=library)).folder / "libsts_plugins.so"
    before = placed.stat()
    build(BuildRequest(copy.folder, "tensorrt", plugins=library))
    assert (placed.stat().st_ino, placed.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    Path(library).write_bytes(OTHER_PLUGINS)
    with placed.open("rb") as in_use:
        build(BuildRequest(copy.folder, "tensorrt", plugins=library))
        assert in_use.read() == PLUGINS
    assert placed.read_bytes() == OTHER_PLUGINS


def test_without_a_library_the_cost_and_the_way_out_are_said(
    copy: Bundle, jobs: list[BuildJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_library", lambda *_: None)
    report = build(BuildRequest(copy.folder, "tensorrt"))
    assert [job.plugins for job in jobs] == [None] * 4
    (note,) = warnings(report)
    assert "standard operators" in note and "scripts/build_plugins" in note


@pytest.mark.parametrize(("machine", "found"), [(X86_64, True), (AARCH64, False)], ids=["x86-64", "aarch64"])
def test_a_library_in_the_bundle_is_found_if_it_is_for_this_machine(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch, machine: int, found: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (copy.folder / "libsts_plugins.so").write_bytes(headers_only(["getCreators"], machine))
    assert (find_library(copy, None, (10, 3)) == copy.folder / "libsts_plugins.so") == found


def test_a_library_for_another_tensorrt_is_passed_over(
    copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be the one of an installed package; what is given is refused."""
    monkeypatch.setattr(libraries, "own_folders", list)
    source = "int getCreators(void) { return 0; } int stsPluginsTensorRTVersion(void) { return 110100; }"
    file = compiled(source, copy.folder / "libsts_plugins.so")
    with caplog.at_level(logging.WARNING):
        assert find_library(copy, None, (11, 4)) == file and not caplog.records
        assert find_library(copy, None, (10, 3)) is None
    said = "was built for TensorRT 11.1, and 10.3 is installed"
    assert [record.getMessage() for record in caplog.records] == [f"note: {file} is not used: it {said}"]
    with pytest.raises(RequestError, match=f"{file} cannot be used as plugin library: it {said}; build it with"):
        find_library(copy, str(file), (10, 3))


def test_commands_that_cannot_be_written_do_not_matter(
    copy: Bundle, library: str, jobs: list[BuildJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_graphs", full)
    report = build(BuildRequest(copy.folder, "tensorrt", plugins=library))
    assert open_engines(copy, "tensorrt")
    assert any("No space left on device" in warning for warning in warnings(report))


def test_a_tensorrt_that_is_too_old(copy: Bundle, jobs: list[BuildJob], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load", lambda runtime: SimpleNamespace(__version__="10.1.0.27"))
    with pytest.raises(BackendError, match=r"TensorRT 10\.1\.0\.27 is too old; install 10\.3 or later"):
        build(BuildRequest(copy.folder, "tensorrt"))
    assert not jobs


def test_a_wrong_library_is_refused_before_anything_is_built(copy: Bundle, jobs: list[BuildJob], library: str) -> None:
    wrongs = {
        b"text": "it is no shared library for Linux",
        PLUGINS[:-1]: "it is damaged",
        headers_only(["getCreators"], OTHER_MACHINE): "it is for .*, and this machine is",
        headers_only(["RegisterCustomOps"]): "it is another library, without getCreators",
    }
    for content, reason in wrongs.items():
        Path(library).write_bytes(content)
        with pytest.raises(RequestError, match=f"cannot be used as plugin library: {reason}.*; build it with scripts/build_"):
            build(BuildRequest(copy.folder, "tensorrt", plugins=library))
    assert not jobs and not (copy.folder / "engines").exists()


def test_a_library_that_is_not_there(copy: Bundle, jobs: list[BuildJob]) -> None:
    with pytest.raises(RequestError, match=r"there is no plugin library .*nowhere\.so; build it with scripts/build_plugins"):
        build(BuildRequest(copy.folder, "tensorrt", plugins="nowhere.so"))
    assert not (copy.folder / "engines").exists()


def test_tensorrt_needs_a_gpu(copy: Bundle, jobs: list[BuildJob], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "current_gpu", lambda: None)
    with pytest.raises(BackendError, match="no CUDA GPU is found here"):
        build(BuildRequest(copy.folder, "tensorrt"))


def test_a_target_is_for_tensorrt_for_rtx(copy: Bundle, jobs: list[BuildJob]) -> None:
    with pytest.raises(RequestError, match="--target is for --runtime tensorrt-rtx"):
        build(BuildRequest(copy.folder, "tensorrt", target="sm_87"))


def test_a_small_gpu_is_refused_before_anything_is_built(
    copy: Bundle, jobs: list[BuildJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "current_gpu", lambda: Gpu("Orin Nano", "sm_87", 100 << 20, 90 << 20))
    with pytest.raises(BackendError, match=r"not enough GPU memory: about .* and Orin Nano has 0\.1 GB"):
        build(BuildRequest(copy.folder, "tensorrt"))
    assert not jobs and not (copy.folder / "engines").exists()


def test_no_runtime_installed(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", list)
    with pytest.raises(BackendError, match="neither tensorrt nor tensorrt_rtx is installed"):
        build(BuildRequest(copy.folder))
