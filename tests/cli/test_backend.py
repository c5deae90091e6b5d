"""`--backend`: which engine runs a bundle."""

from __future__ import annotations

import json
from typing import Any

import onnxruntime as ort
import pytest

from sts_export.cli import main
from tests.cli.helpers import Work, error_line


def with_options(work: Work, command: str, *options: str) -> list[str]:
    """A command with options that it is refused for."""
    arguments: dict[str, list[str]] = {"run": work.run(*options), "show": work.show(*options)}
    return arguments.get(command) or [command, work.bundle, *options]


def test_run_says_which_backend_ran(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.run("--backend", "onnxruntime", "--json", "--max-new-tokens", "2")) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["backend"] == "onnxruntime" and answer["operators"] is None and printed.err == ""


def test_show_takes_a_backend(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.show("--backend", "onnxruntime", "--max-new-tokens", "2")) == 0
    assert "36 -> 18 -> 6 visual tokens" in capsys.readouterr().out


@pytest.fixture
def no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain onnxruntime package."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.mark.usefixtures("no_provider")
def test_without_the_gpu_package(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """The work failed, and the line says what to install."""
    for arguments in (work.run("--backend", "onnxruntime-cuda"), work.show("--backend", "onnxruntime-cuda")):
        assert main(arguments) == 1
        assert error_line(capsys).startswith("this ONNX Runtime has no CUDA provider: pip install 'sts-export[gpu]'")


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_without_engines(work: Work, capsys: pytest.CaptureFixture[str], runtime: str) -> None:
    assert main(work.run("--backend", runtime)) == 2
    assert f"has no {runtime} engines; build them: sts-export build" in error_line(capsys)


@pytest.mark.parametrize("command", ["run", "show", "bench"])
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_threads_are_for_the_cpu(work: Work, capsys: pytest.CaptureFixture[str], command: str, name: str) -> None:
    wrong = ("--backend", name, "--threads", "2")
    arguments: dict[str, Any] = {"run": work.run(*wrong), "show": work.show(*wrong), "bench": ["bench", work.bundle, *wrong]}
    assert main(arguments[command]) == 2
    assert error_line(capsys).startswith("threads are for the CPU")


@pytest.mark.parametrize("command", ["run", "show", "bench", "verify"])
def test_plugins_that_are_not_there(work: Work, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """That is said on machines without CUDA, too."""
    assert main(with_options(work, command, "--plugins", "nowhere.so")) == 2
    assert error_line(capsys).startswith("there is no operator library nowhere.so; build it with scripts/build_plugins")


@pytest.mark.parametrize("command", ["run", "verify"])
@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_plugins_are_for_cuda(work: Work, capsys: pytest.CaptureFixture[str], command: str, name: str) -> None:
    assert main(with_options(work, command, "--backend", name, "--plugins", "some.so")) == 2
    error = error_line(capsys)
    assert "plugins" in error and "leave them out" in error and "or take onnxruntime-cuda" in error


@pytest.mark.parametrize("command", ["run", "show", "bench", "verify"])
def test_unknown_backends(work: Work, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main(with_options(work, command, "--backend", "vulkan")) == 2
    error = error_line(capsys)
    assert "argument --backend: invalid choice: 'vulkan'" in error and f"see sts-export {command} --help" in error


def test_engines_that_cannot_be_used_are_named_on_stderr(
    work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the answer comes from the CPU."""
    from sts_export.backends import choice as backends

    monkeypatch.setattr(backends, "count_gpus", lambda: 0)
    bundle = work.copy("bundle")
    (bundle / "engines" / "tensorrt" / "some-gpu").mkdir(parents=True)
    assert main(work.run("--json", "--max-new-tokens", "2", bundle=str(bundle))) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "onnxruntime"
