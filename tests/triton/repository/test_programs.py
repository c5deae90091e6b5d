"""run-server and the container's entrypoint, with programs in the place of Triton and sts-export."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from tests.triton.repository.helpers import write

PATIENCE = 60.0


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH, with a tritonserver that prints its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder / "tritonserver", 'printf "%s\\n" "$@"')
    return folder


def program(file: Path, text: str) -> None:
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)


def run(command: list[str], programs: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=on_path(programs), cwd=folder, capture_output=True, text=True, check=False)


def started(command: list[str], programs: Path, folder: Path) -> subprocess.Popen[str]:
    """Once a program in it has made the file `begun` in `folder`."""
    process = subprocess.Popen(
        command, env=on_path(programs), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    end = time.monotonic() + PATIENCE
    while not (folder / "begun").exists() and time.monotonic() < end:
        time.sleep(0.02)
    return process


def on_path(programs: Path) -> dict[str, str]:
    return {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin"}


@pytest.mark.parametrize("name", ["run-server", "entrypoint", "entrypoint with a build"])
def test_shellcheck(bundle: Path, tmp_path: Path, name: str) -> None:
    checker = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    options = {"gpus": (0,), "build_at_start": True} if "build" in name else {}
    repository = write(bundle, tmp_path / "repository", **options)
    subprocess.run([checker, str(repository / name.split()[0])], check=True)


# run-server


def test_run_server_from_anywhere(bundle: Path, tmp_path: Path, programs: Path) -> None:
    """Its folder has a blank, and it is called by a link; options go through as they are."""
    repository = write(bundle, tmp_path / "my repository")
    (tmp_path / "link").symlink_to(repository / "run-server")
    for name in ("my repository/run-server", "link"):
        done = run([str(tmp_path / name), "--http-port=9000", "--a=b c"], programs, Path("/"))
        assert done.stdout.splitlines() == [
            f"--model-repository={repository}",
            "--disable-auto-complete-config",
            "--http-port=9000",
            "--a=b c",
        ]


def test_run_server_takes_another_tritonserver(bundle: Path, tmp_path: Path, programs: Path) -> None:
    repository = write(bundle, tmp_path / "repository")
    program(tmp_path / "other", "echo other")
    assert run([str(repository / "run-server"), str(tmp_path / "other")], programs, tmp_path).stdout == "other\n"


@pytest.mark.parametrize("given", [[], ["/none/tritonserver"]])
def test_run_server_without_triton(bundle: Path, tmp_path: Path, given: list[str]) -> None:
    repository = write(bundle, tmp_path / "repository")
    done = run([str(repository / "run-server"), *given], tmp_path, tmp_path)
    assert done.returncode == 127 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"run-server: {(given or ['tritonserver'])[0]} was not found; put its folder into PATH")


# entrypoint


def entrypoint(bundle: Path, tmp_path: Path, *, build: bool = True) -> Path:
    """With the repository in the place of /models."""
    options = {"gpus": (0,), "build_at_start": True, "slots": 3} if build else {}
    repository = write(bundle, tmp_path / "models", **options)
    file = repository / "entrypoint"
    text = file.read_text()
    assert "/models" in text
    file.write_text(text.replace("/models", str(repository)))
    return file


def test_entrypoint_without_engines(bundle: Path, tmp_path: Path, programs: Path) -> None:
    file = entrypoint(bundle, tmp_path, build=False)
    done = run([str(file), "--log-verbose=1"], programs, tmp_path)
    assert done.stdout.splitlines() == [
        f"--model-repository={file.parent}",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=60",
        "--log-verbose=1",
    ]


def test_entrypoint_builds_first(bundle: Path, tmp_path: Path, programs: Path) -> None:
    file = entrypoint(bundle, tmp_path)
    program(programs / "sts-export", 'echo "sts-export $*"')
    lines = run([str(file)], programs, tmp_path).stdout.splitlines()
    own = file.parent / "m" / "1" / "bundle"
    assert lines[:2] == [
        f"sts-export build {own} --runtime tensorrt --max-batch 3",
        f"--model-repository={file.parent}",
    ]


def test_a_failed_build_starts_no_server(bundle: Path, tmp_path: Path, programs: Path) -> None:
    file = entrypoint(bundle, tmp_path)
    program(programs / "sts-export", "echo no GPU >&2; exit 1")
    done = run([str(file)], programs, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "no GPU\n")


def test_two_replicas_do_not_build_at_once(bundle: Path, tmp_path: Path, programs: Path) -> None:
    """The program fails where another one is at work."""
    file = entrypoint(bundle, tmp_path)
    program(programs / "sts-export", f"mkdir {tmp_path}/busy || exit 9; sleep 0.2; rmdir {tmp_path}/busy")
    replicas = [
        subprocess.Popen([str(file)], env=on_path(programs), stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(3)
    ]
    for replica in replicas:
        printed, _ = replica.communicate(timeout=PATIENCE)
        assert replica.returncode == 0 and "--model-repository=" in printed


def test_an_end_while_it_builds(bundle: Path, tmp_path: Path, programs: Path) -> None:
    """SIGTERM reaches the build, and no server is started."""
    file = entrypoint(bundle, tmp_path)
    mark = tmp_path / "told"
    told = f"trap 'touch {mark}; exit 143' TERM"
    program(programs / "sts-export", f"{told}; touch {tmp_path}/begun; while :; do sleep 0.05; done")
    process = started([str(file)], programs, tmp_path)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and printed == "" and mark.exists()


@pytest.mark.parametrize("code", [0, 7])
def test_entrypoint_ends_as_triton_does(bundle: Path, tmp_path: Path, programs: Path, code: int) -> None:
    file = entrypoint(bundle, tmp_path, build=False)
    program(programs / "tritonserver", f"exit {code}")
    assert run([str(file)], programs, tmp_path).returncode == code


@pytest.mark.parametrize("build", [False, True])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_end_while_it_serves(bundle: Path, tmp_path: Path, programs: Path, build: bool, sent: signal.Signals) -> None:
    """Triton is told, also a second time; its last words and its exit code are waited for."""
    file = entrypoint(bundle, tmp_path, build=build)
    program(programs / "sts-export", "exit 0")
    told = tmp_path / "told"
    serve = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    program(programs / "tritonserver", f"trap 'echo >>{told}' TERM; touch {tmp_path}/begun; {serve}; echo ended; exit 0")
    process = started([str(file)], programs, tmp_path)
    for times in (1, 2):
        process.send_signal(sent)
        end = time.monotonic() + PATIENCE
        while (not told.exists() or told.stat().st_size < times) and time.monotonic() < end:
            time.sleep(0.02)
        assert told.stat().st_size == times and process.poll() is None
    (tmp_path / "go").touch()
    printed, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, printed) == (0, "ended\n")


def test_an_end_while_models_load(bundle: Path, tmp_path: Path, programs: Path) -> None:
    """Triton has no handler yet: as the first process of a container it would be told in vain."""
    contained = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*contained, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no namespaces of processes for this user")
    file = entrypoint(bundle, tmp_path, build=False)
    program(programs / "tritonserver", f"touch {tmp_path}/begun; exec sleep {10 * PATIENCE:.0f}")
    process = started([*contained, str(file)], programs, tmp_path)
    first = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    try:
        os.kill(first, signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 143


@pytest.mark.skipif(os.geteuid() == 0, reason="no permission stops the superuser")
def test_engines_that_cannot_be_written(bundle: Path, tmp_path: Path, programs: Path) -> None:
    file = entrypoint(bundle, tmp_path)
    folder = file.parent / "m" / "1" / "bundle" / "engines"
    folder.chmod(0o555)
    done = run([str(file)], programs, tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"entrypoint: {folder} cannot be written; mount a volume there")


def test_no_folder_for_engines(bundle: Path, tmp_path: Path, programs: Path) -> None:
    file = entrypoint(bundle, tmp_path)
    (file.parent / "m" / "1" / "bundle" / "engines").rmdir()
    done = run([str(file)], programs, tmp_path)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
