"""The kernels' sources under other compilers: nvcc for every architecture, ThreadSanitizer, AddressSanitizer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.plugins.kernels import FLAGS, HERE, SOURCES
from tests.plugins.trt_build import REPOSITORY, compile_targets, configure, need_tools

HOST = [str(SOURCES / "host" / f"{name}_host.cpp") for name in ("repulsion_select", "last_token_topk")]
DEVICE = [str(SOURCES / f"{name}.cu") for name in ("repulsion_select", "last_token_topk")]
ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "100", "110", "120")
WARNINGS = ("-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror")


def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        pytest.skip("needs nvcc to compile plugins/kernels/*.cu")
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


@pytest.mark.parametrize("source", ["repulsion_select.cu", "last_token_topk.cu"])
def test_every_architecture_compiles_without_warnings(source: str, tmp_path: Path) -> None:
    """Those that this nvcc knows, and PTX of the newest; hardly optimized, since only diagnostics count here."""
    compiler = nvcc()
    known = run(compiler, "--list-gpu-arch").split()
    architectures = [number for number in ARCHITECTURES if f"compute_{number}" in known]
    assert "90" in architectures
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    targets.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    flags = [*WARNINGS, "--threads=2", "-Xcicc=-O1", "-Xptxas=-O0"]
    assert "warning" not in run(compiler, *flags, *targets, "-c", SOURCES / source, "-o", tmp_path / "object.o")


@dataclass(frozen=True)
class Released:
    """A source compiled as released, for one architecture: what ptxas reports, and each kernel's PTX by its mangled name."""

    report: str
    kernels: dict[str, str]


@pytest.fixture(scope="module", params=["repulsion_select", "last_token_topk"])
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Released:
    folder = tmp_path_factory.mktemp("released")
    flags = ["-std=c++17", "-O3", "--fmad=false", "-arch=sm_90", "-Xptxas=-v", "--keep", f"--keep-dir={folder}"]
    report = run(nvcc(), *flags, "-c", SOURCES / f"{request.param}.cu", "-o", folder / "object.o")
    (ptx,) = folder.glob("*.ptx")
    entries = re.split(r"^(?:\.weak |\.visible )*\.entry (?=\w)", ptx.read_text(), flags=re.MULTILINE)[1:]
    return Released(report, {entry[: entry.index("(")]: entry for entry in entries})


def test_registers_do_not_spill(released: Released) -> None:
    spills = [line for line in released.report.splitlines() if "spill" in line]
    assert len(spills) >= 4 and all("0 bytes spill stores, 0 bytes spill loads" in line for line in spills), released.report


def test_dependent_kernels_wait_before_they_touch_memory(released: Released) -> None:
    """In the compiled code, too: nothing global is read or written before the wait, nor is the next kernel let start."""
    wait, let = "griddepcontrol.wait", "griddepcontrol.launch_dependents"
    touch = re.compile(r"\b(?:ld|st|atom|red)\.(?!param|shared)")
    names = ("softmax", "score", "choice", "greedy", "step", "gramStep", "finish")
    dependent = [f"{len(name) + len('Kernel')}{name}Kernel" for name in names]  # as in mangled names
    waiting = {name: text for name, text in released.kernels.items() if wait in text}
    assert set(waiting) == {name for name in released.kernels if any(part in name for part in dependent)}
    assert len(waiting) >= 3
    for name, text in waiting.items():
        before = text[: text.index(wait)]
        assert let not in before and touch.search(before) is None, name
        assert text.count(wait) == 1 and touch.search(text) is not None


def test_no_race_on_the_simulated_device(tmp_path: Path) -> None:
    """Blocks of operating system threads under ThreadSanitizer: every access to shared memory is ordered by a barrier."""
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}\n")
    if shutil.which("g++") is None or subprocess.run(["g++", "-fsanitize=thread", probe, "-o", tmp_path / "probe"]).returncode:
        pytest.skip("needs g++ with ThreadSanitizer (libtsan)")
    if subprocess.run([tmp_path / "probe"]).returncode:
        pytest.skip("ThreadSanitizer does not run on this machine")
    program = tmp_path / "race_check"
    flags = [*FLAGS, "-O1", "-g", "-pthread", "-fsanitize=thread", "-DSTS_SIMULATE_BY_THREADS", "-x", "c++"]
    run("g++", *flags, HERE / "programs" / "race_check.cpp", *DEVICE, *HOST, "-o", program)
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([program], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stdout[-8000:]


def test_the_check_program_on_the_host(tmp_path: Path) -> None:
    """check_kernels with the host's kernels on both sides, under AddressSanitizer: no access out of bounds, nothing fails."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    program = tmp_path / "check_kernels"
    flags = [*FLAGS, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-x", "c++"]
    run("g++", *flags, SOURCES / "check" / "check_kernels.cu", *HOST, "-o", program)
    report = json.loads(run(program, "--host-only"))
    assert report["failures"] == [] and report["checks"] > 300 and report["device"] == "none"
    assert json.loads(run(program, "--host-only", "--once"))["checks"] == 0
    refused = subprocess.run([program], capture_output=True, text=True)
    assert refused.returncode == 2 and "--host-only" in refused.stderr


@pytest.mark.gpu
@pytest.mark.headers
def test_the_check_program_on_the_device(tmp_path: Path) -> None:
    """check_kernels with the device's kernels against the host's: equal to the bit.  Built as the libraries are."""
    need_tools()
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    architecture = run(*query).split()[0].replace(".", "")
    configure(REPOSITORY / "plugins", tmp_path, None, f"-DSTS_CUDA_ARCHITECTURES={architecture}")
    compile_targets(tmp_path, ["check_kernels"])
    report = json.loads(run(tmp_path / "check_kernels", "--checks-only"))
    assert report["failures"] == [] and report["checks"] > 300 and report["device"] != "none"
    report = json.loads(run(tmp_path / "check_kernels", "--once"))
    assert report["failures"] == [] and 0 < report["checks"] < 50 and report["timings_us"] == {}


@pytest.mark.parametrize("source", ["check/check_kernels.cu", "c_api.cu"])
def test_what_calls_the_kernels_compiles(source: str, tmp_path: Path) -> None:
    run(nvcc(), *WARNINGS, "-arch=sm_90", "-c", SOURCES / source, "-o", tmp_path / "object.o")
