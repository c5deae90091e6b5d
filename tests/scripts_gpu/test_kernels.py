"""The kernel part, with fakes of a GPU machine's programs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu.kernels import measure as kernels
from scripts.gpu.kernels import programs
from scripts.gpu.kernels.profile import profile
from scripts.gpu.kernels.sanitizer import sanitize_all
from scripts.gpu.progress import Clock
from scripts.gpu.reports import limits, tables
from scripts.gpu.reports.failures import failures

TIMING = {"median": 400.0, "min": 390.0, "floor_bytes": 2_000_000, "moved_bytes": 4_000_000}


def test_floor_and_limit() -> None:
    """2 MB at 4 TB/s take half a microsecond at least; 0.5 ms are allowed for 96 of 576, 0.1 ms for stage 2."""
    printed = {
        "repulsion_1x576x1024_k96_fp16": TIMING,
        "topk_1x32x32x131_k32_fp16": {**TIMING, "median": 100.5},
        "repulsion_1x16384x1024_k1000_fp16": TIMING,
    }
    first, second, third = limits.timings(printed, 4e12)
    assert first["floor_us"] == pytest.approx(0.5)
    assert (first["median_us"], first["limit_us"], first["within_limit"]) == (400, 500, True)
    assert (second["limit_us"], second["within_limit"]) == (100, False)
    assert (third["limit_us"], third["within_limit"]) == (None, None)


def _check_program() -> str:
    """Its sources, all of them."""
    return "".join(file.read_text() for file in sorted((programs.PLUGINS / "kernels" / "check").glob("*.cu")))


def test_check_kernels_times_what_has_a_limit() -> None:
    """Its names are made of the shapes in timeAll."""
    source = _check_program().split("void timeAll()")[1]
    for shape in ("{1, 576, 1024, 96}", "{5, 576, 1024, 96}", "{1, 2880, 1024, 480}"):
        assert f"timeRepulsion({shape}, DataType::kHalf" in source
    for shape in ("{1, 32, 32, 131, 128, 96, 32}", "{1, 32, 32, 515, 128, 480, 160}", "{1, 32, 32, 700, 128, 576, 64}"):
        assert f"timeTopK({shape}, DataType::kHalf" in source


def end_to_end(backend: str, operators: str | None, prefill_ms: float) -> dict[str, Any]:
    """One run of LLaVA-NeXT: transformers, and at 320 a bundle whose selector takes 2 ms; no prefill, no bundle."""
    bundle = {
        "name": "320",
        "medians": {"prefill_ms": prefill_ms, "select_ms": 2.0} if prefill_ms else {},
        "details": {"operators": operators},
    }
    theirs = {"name": "transformers", "medians": {"prefill_ms": 200.0}, "details": {}}
    return {"shapes": {"llava-next-7b": {"runs": [{"backend": backend, "contenders": [theirs, bundle]}]}}}


STAGES = {
    "repulsion_5x576x1024_k96_fp16": {**TIMING, "median": 450.0},
    "topk_1x32x32x515_k160_fp16": {**TIMING, "median": 50.0},
}
LIBRARY = "libsts_onnxruntime.so"


@pytest.mark.parametrize(
    ("backend", "operators", "timed", "of", "share"),
    [
        ("tensorrt", None, STAGES, "kernels", 0.0125),
        ("onnxruntime-cuda", LIBRARY, STAGES, "kernels", 0.0125),
        ("onnxruntime-cuda", None, STAGES, "selector", 0.05),  # the kernels are fast, but did not run
        ("onnxruntime-cuda", LIBRARY, {}, "selector", 0.05),
    ],
)
def test_share_of_the_prefill(backend: str, operators: str | None, timed: dict[str, Any], of: str, share: float) -> None:
    """Half a millisecond for both kernels, of 40."""
    (found,) = limits.selection_shares(limits.timings(timed, 1e12), end_to_end(backend, operators, 40.0))
    assert found["of"] == of and found["share"] == pytest.approx(share)
    assert found["within_limit"] is (share <= 0.02)


def test_no_share_of_a_bundle_that_did_not_run() -> None:
    assert limits.selection_shares(limits.timings(STAGES, 1e12), end_to_end("tensorrt", None, 0.0)) == []


def printing(folder: Path, text: str, code: int) -> list[str]:
    """A program that prints this."""
    file = folder / "program"
    (folder / "text").write_text(text)
    file.write_text(f"#!/bin/sh\ncat {folder}/text\necho complaint >&2\nexit {code}\n")
    file.chmod(0o755)
    return [str(file)]


@pytest.mark.parametrize(
    ("text", "code", "passed"),
    [
        ('{"checks": 3, "failures": [], "timings_us": {}}', 0, True),
        ('{"checks": 3, "failures": ["repulsion: other indices"], "timings_us": {}}', 1, False),
        ('{"checks": 0, "failures": [], "timings_us": {}}', 0, False),
        ('{"checks": 3, "failures": []}', 2, False),
        ("no device", 2, False),
    ],
)
def test_what_the_program_says(tmp_path: Path, text: str, code: int, passed: bool) -> None:
    checks = kernels.check(printing(tmp_path, text, code), Clock(10))
    assert (failures({"kernels": {"build": {"error": None}, "checks": checks}}) == []) is passed
    if code == 2:
        assert "exit code 2" in checks["error"] and "complaint" in checks["error"]


def test_the_table() -> None:
    record = {
        "build": {"error": None},
        "checks": {"checks": 3, "failures": []},
        "timings": limits.timings(STAGES, 1e12),
        "conformance": {"passed": None, "reason": "it needs a GPU"},
    }
    table = tables.format_tables({"kernels": record})
    assert "topk_1x32x32x515_k160_fp16" in table and "within" in table and "sts_conformance: it needs a GPU" in table


def test_the_host_program_rounds_as_the_library_does() -> None:
    (command,) = programs.build_commands(Path("x"), None)
    assert "-ffp-contract=off" in command


def test_the_recipe_of_the_library(tmp_path: Path) -> None:
    """CMake takes it, and nvcc gets the flags of the shipped kernels; tests/plugins compiles them."""
    if shutil.which("nvcc") is None or shutil.which("cmake") is None:
        pytest.skip("nvcc or cmake is not installed")
    configure, build = programs.build_commands(tmp_path, "sm_90")
    done = subprocess.run(configure, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    known = subprocess.run(["cmake", "--build", str(tmp_path), "--target", "help"], capture_output=True, text=True).stdout
    if f"... {programs.CHECK}" not in known:
        pytest.skip("plugins/CMakeLists.txt has no target check_kernels")
    planned = subprocess.run([*build, "--", "--dry-run"], capture_output=True, text=True).stdout
    compiled = [line for line in planned.splitlines() if "nvcc" in line and "repulsion_select.cu" in line]
    assert compiled and all("--fmad=false" in line and "sm_90" in line for line in compiled)


PROGRAM = """#!/bin/sh
timings='"topk_1x32x32x131_k32_fp16": {"median": 20.0, "min": 19.0, "floor_bytes": 1000000, "moved_bytes": 2000000}'
[ "$1" = --checks-only ] && timings=
echo '{"device": "fake", "checks": 5, "failures": [], "timings_us": {'$timings'}}'
"""
CMAKE = """#!/bin/sh
# Configures nothing, and builds the target that it is asked for.
[ "$1" = --build ] || exit 0
[ "$4" = check_kernels ] && cp "$(dirname "$0")/program" "$2/check_kernels"
"""
SANITIZER = """#!/bin/sh
[ "$4" = --checks-only ] || exit 9
"$3" "$4" && echo "========= ERROR SUMMARY: 0 errors"
"""
CONFORMANCE = """#!/bin/sh
echo "$(basename "$1")%s"
exit %d
"""


def executable(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with fakes of cmake and compute-sanitizer, which come first."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in (("cmake", CMAKE), ("compute-sanitizer", SANITIZER), ("program", PROGRAM)):
        executable(folder / name, text)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_built_checked_and_timed(tmp_path: Path, tools: Path) -> None:
    saved: list[str] = []
    made = programs.obtain(tmp_path, Clock(60), architecture="sm_90")
    kernels.measure(Clock(60), lambda record: saved.append(json.dumps(record)), made, on_gpu=True, bandwidth=lambda: 1e12)
    record = json.loads(saved[-1])
    assert "check_kernels" in record["build"]["command"] and str(tmp_path) not in record["build"]["command"]
    (timing,) = record["timings"]
    assert (timing["floor_us"], timing["limit_us"], timing["within_limit"]) == (1.0, 100.0, True)
    assert record["conformance"]["reason"] == "sts_conformance was not brought"
    assert len(saved) == 3 and failures({"kernels": record}) == []


SKIPPED = "skipped 250: enqueue needs a GPU, and CUDA finds none here"


@pytest.mark.parametrize(("said", "code", "reason"), [("", 0, None), ("", 1, "exit code 1"), (f"\n{SKIPPED}", 0, SKIPPED)])
def test_brought_ready_made(tmp_path: Path, said: str, code: int, reason: str | None) -> None:
    """Nothing is compiled, and the plugins are driven, on the device."""
    executable(tmp_path / "check_kernels", PROGRAM)
    executable(tmp_path / "sts_conformance", CONFORMANCE % (said, code))
    (tmp_path / "libsts_plugins.so").touch()
    saved: list[dict[str, Any]] = []
    made = programs.obtain(tmp_path / "absent", Clock(60), architecture="sm_90", binaries=tmp_path)
    kernels.measure(Clock(60), saved.append, made, on_gpu=True, bandwidth=lambda: 1e12)
    assert saved[-1]["conformance"]["passed"] is (reason is None)
    assert saved[-1]["conformance"]["tail"] == f"libsts_plugins.so{said}\n"
    assert failures({"kernels": saved[-1]}) == ([] if reason is None else [f"failed: kernels: sts_conformance: {reason}"])


def test_sanitizers_alone(tmp_path: Path, tools: Path) -> None:
    """Those that are asked for, over a program that was brought."""
    executable(tmp_path / "check_kernels", PROGRAM)
    saved: list[dict[str, Any]] = []
    made = programs.obtain(tmp_path, Clock(60), architecture="sm_90", binaries=tmp_path)
    sanitize_all(Clock(60), saved.append, made, ["racecheck", "memcheck"], on_gpu=True)
    reports = saved[-1]["sanitizer"]
    assert list(reports) == ["racecheck", "memcheck"] and all(report["clean"] for report in reports.values())


def test_a_profile(tmp_path: Path, tools: Path) -> None:
    executable(tools / "ncu", '#!/bin/sh\necho "$@"\necho Section: A\n')
    executable(tmp_path / "check_kernels", PROGRAM)
    saved: list[dict[str, Any]] = []
    profile(Clock(60), saved.append, programs.obtain(tmp_path, Clock(60), architecture="sm_90", binaries=tmp_path), on_gpu=True)
    for name, report in saved[-1]["profiles"].items():
        assert report["reason"] is None and "--clock-control=none" in report["text"] and f"regex:{name}" in report["text"]
        assert "check_kernels --once\n" in report["text"]  # the shapes that have limits, and nothing before them
        assert f" {name}(" in "".join(file.read_text() for file in (programs.PLUGINS / "kernels").glob("*.cu"))
    executable(tools / "ncu", "#!/bin/sh\necho LibraryNotLoaded\nexit 9\n")
    profile(Clock(60), saved.append, programs.obtain(tmp_path, Clock(60), architecture="sm_90", binaries=tmp_path), on_gpu=True)
    assert {report["reason"] for report in saved[-1]["profiles"].values()} == {"nothing was profiled, exit code 9"}
    (tools / "ncu").unlink()
    profile(Clock(60), saved.append, programs.obtain(tmp_path, Clock(60), architecture="sm_90", binaries=tmp_path), on_gpu=True)
    assert {report["reason"] for report in saved[-1]["profiles"].values()} == {"ncu is not installed"}


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = programs.obtain(tmp_path, Clock(60), architecture="sm_90")
    assert made.check is None and made.build["error"] == "cmake is not installed"
    saved: list[dict[str, Any]] = []
    kernels.measure(Clock(60), saved.append, made, on_gpu=True, bandwidth=lambda: 1e12)
    assert failures({"kernels": saved[-1]}) == ["failed: kernels: cmake is not installed"]
