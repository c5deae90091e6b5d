"""The kernel part, with fakes of a GPU machine's programs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu.kernels import measure as kernels
from scripts.gpu.progress import Clock
from scripts.gpu.reports import limits, tables

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


def test_check_kernels_times_what_has_a_limit() -> None:
    """Its names are made of the shapes in timeAll."""
    source = (kernels.SOURCES / "check" / "check_kernels.cu").read_text().split("void timeAll()")[1]
    for shape in ("{1, 576, 1024, 96}", "{5, 576, 1024, 96}", "{1, 2880, 1024, 480}"):
        assert f"timeRepulsion({shape}, DataType::kHalf" in source
    for shape in ("{1, 32, 32, 131, 128, 96, 32}", "{1, 32, 32, 515, 128, 480, 160}", "{1, 32, 32, 700, 128, 576, 64}"):
        assert f"timeTopK({shape}, DataType::kHalf" in source


def end_to_end(**prefills: float) -> dict[str, Any]:
    """One run of LLaVA-NeXT with these prefills; budgets are given as ``b320``."""
    contenders = [
        {"name": name.removeprefix("b"), "medians": {"prefill_ms": prefill} if prefill else {}}
        for name, prefill in prefills.items()
    ]
    return {"shapes": {"llava-next-7b": {"runs": [{"backend": "tensorrt", "contenders": contenders}]}}}


STAGES = {
    "repulsion_5x576x1024_k96_fp16": {**TIMING, "median": 450.0},
    "topk_1x32x32x515_k160_fp16": {**TIMING, "median": 50.0},
}


@pytest.mark.parametrize(
    ("prefills", "of", "share"),
    [
        ({"transformers": 200.0, "b320": 40.0}, "320", 0.0125),
        ({"transformers": 200.0, "b320": 10.0}, "320", 0.05),
        ({"transformers": 200.0, "b320": 0.0}, "transformers", 0.0025),
    ],
)
def test_share_of_the_prefill(prefills: dict[str, float], of: str, share: float) -> None:
    """Half a millisecond for both; 0 is a contender that failed."""
    (found,) = limits.selection_shares(limits.timings(STAGES, 1e12), end_to_end(**prefills))
    assert found["prefill_of"] == of and found["share"] == pytest.approx(share)
    assert found["within_limit"] is (share <= 0.02)


def test_no_share_without_timings() -> None:
    assert limits.selection_shares([], end_to_end(transformers=200.0)) == []


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
    record = {"build": {"error": None}, "checks": checks, "sanitizer": {}, "timings": []}
    assert kernels.passed(record) is passed
    if code == 2:
        assert "exit code 2" in checks["error"] and "complaint" in checks["error"]


@pytest.mark.parametrize(("clean", "passed"), [(True, True), (None, True), (False, False)])
def test_a_sanitizer_that_finds_something_is_a_failure(clean: bool | None, passed: bool) -> None:
    """One that cannot work is not."""
    record = {
        "build": {"error": None},
        "checks": {"checks": 3, "failures": []},
        "sanitizer": {"memcheck": {"clean": clean, "reason": None if clean else "4 errors"}},
        "timings": limits.timings(STAGES, 1e12),
    }
    assert kernels.passed(record) is passed
    table = tables.format_tables({"kernels": record})
    assert ("memcheck: clean" in table) is (clean is True) and ("4 errors" in table) is (clean is not True)
    assert "topk_1x32x32x515_k160_fp16" in table and "within" in table


def test_nvcc_takes_the_command(tmp_path: Path) -> None:
    """Every step that it would take; tests/plugins/test_kernel_builds.py compiles each of these files."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    command = kernels.compile_command(tmp_path / "check_kernels", "sm_90")
    done = subprocess.run([*command, "--dryrun"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = done.stderr.splitlines()
    for source in ("check_kernels.cu", "c_api.cu", "repulsion_select.cu", "last_token_topk.cu"):
        assert any("cicc" in step and "compute_90" in step and source in step for step in steps), source
    linked = steps[-1]
    for source in ("check_kernels", "repulsion_select", "last_token_topk", "repulsion_select_host", "last_token_topk_host"):
        assert f'_{source}.o"' in linked, linked
    assert str(tmp_path / "check_kernels") in linked


def run(saved: list[str], architecture: str | None) -> bool:
    """``saved`` gets what was saved."""
    return kernels.run(
        Clock(600), lambda record: saved.append(json.dumps(record)), architecture=architecture, bandwidth=lambda: 1e12
    )


NVCC = """#!/bin/sh
# Compiles anything into a program that times one kernel, unless there is nothing to time.
for last in "$@"; do :; done
cat >"$last" <<'PROGRAM'
#!/bin/sh
timings='"topk_1x32x32x131_k32_fp16": {"median": 20.0, "min": 19.0, "floor_bytes": 1000000, "moved_bytes": 2000000}'
[ "$1" = --checks-only ] && timings=
echo '{"device": "fake", "checks": 5, "failures": [], "timings_us": {'$timings'}}'
PROGRAM
chmod +x "$last"
"""
SANITIZER = """#!/bin/sh
[ "$4" = --checks-only ] || exit 9
"$3" "$4" && echo "========= ERROR SUMMARY: 0 errors"
"""


def test_the_whole_part_with_fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nvcc and compute-sanitizer: what is asked of them, and what becomes of their answers."""
    for name, text in (("nvcc", NVCC), ("compute-sanitizer", SANITIZER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    saved: list[str] = []
    assert run(saved, architecture="sm_90")
    record = json.loads(saved[-1])
    assert [report["clean"] for report in record["sanitizer"].values()] == [True] * 4
    (timing,) = record["timings"]
    assert (timing["floor_us"], timing["limit_us"], timing["within_limit"]) == (1.0, 100.0, True)
    assert len(saved) == 6  # built, checked, and after each tool


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    saved: list[str] = []
    assert not run(saved, architecture="sm_90")
    assert json.loads(saved[-1])["build"]["error"] == "nvcc is not installed"
