"""The whole command with toy models on the CPU: what it writes, not what it measures."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.gpu.__main__ import main
from scripts.gpu.end_to_end import comparison
from scripts.gpu.end_to_end import measure as end_to_end
from scripts.gpu.end_to_end.baselines import BASELINES
from scripts.gpu.end_to_end.shapes import ModelShape
from scripts.gpu.end_to_end.task import Task
from scripts.gpu.progress import Clock
from scripts.gpu.reports.failures import failures
from sts_export.errors import StsExportError
from sts_export.measuring.turns import Contender, Outcome, Rules

RUN = Path(__file__).parents[2] / "scripts" / "gpu" / "run"


COMPILER = """#!/bin/sh
# Reads the sources as the real one does, and makes a program that says that all is well.
{compiler} -fsyntax-only "$@" || exit
for last in "$@"; do :; done
echo '#!/bin/sh
echo "{{\\"checks\\": 5, \\"failures\\": []}}"' >"$last"
chmod +x "$last"
"""


def run(folder: Path, *arguments: str, tools: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``tools``: a folder of programs that come before the machine's."""
    path = f"{tools}:{os.environ['PATH']}" if tools else os.environ["PATH"]
    environment = {**os.environ, "PYTHON": sys.executable, "PATH": path}
    command = [str(RUN), "--toy", "--new-tokens", "4", "--repeats", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def record(folder: Path, part: str) -> dict[str, Any]:
    """The one file of a part."""
    (file,) = folder.glob(f"*-toy-{part}.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_the_whole_command(tmp_path: Path) -> None:
    """Once, since it takes a while: two parts, and of the shapes the one that is cut into tiles."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    tools = tmp_path / "tools"
    tools.mkdir()
    # tests/plugins/test_kernel_builds.py runs the real program.
    (tools / "g++").write_text(COMPILER.format(compiler=compiler))
    (tools / "g++").chmod(0o755)
    parts = ("--parts", "kernels,end-to-end", "--label", "next", "--baselines", "transformers")
    done = run(tmp_path, "--output", "results", "--commit", "0123abc", "--shapes", "llava-next-7b", *parts, tools=tools)
    assert done.returncode == 0, done.stderr
    for line in ("transformers  ", "unpruned  ", "budget 8  ", "these figures mean nothing"):
        assert line in done.stdout
    lines = [line for line in done.stderr.splitlines() if " s] " in line]
    seconds = [float(line[1:].split(" s]")[0]) for line in lines]
    assert len(lines) > 10 and seconds == sorted(seconds)  # progress
    records = {part: record(tmp_path / "results", f"{part}-next") for part in ("kernels", "end-to-end")}
    for content in records.values():
        assert content["commit"] == "0123abc" and content["toy"] is True
        assert content["machine"]["processors"] == os.cpu_count()
        assert content["versions"]["transformers"] and content["versions"]["onnxruntime"]
    check_kernels(records["kernels"])
    content = records["end-to-end"]["shapes"]["llava-next-7b"]
    check_shape(content, 180, "transformers")
    assert len(content["runs"]) == 1


def check_kernels(content: dict[str, Any]) -> None:
    assert content["build"]["error"] is None
    assert content["checks"]["checks"] > 0 and not content["checks"]["failures"] and content["checks"]["error"] is None
    assert content["timings"] == [] and content["conformance"]["passed"] is None  # both need a GPU


def check_shape(content: dict[str, Any], tokens: int, *baselines: str) -> None:
    """One model whose picture makes that many visual tokens."""
    assert content["error"] is None
    assert content["checkpoint"]["bytes"] > 0
    found = content["runs"][0]
    assert found["backend"] == "onnxruntime" and found["together"] is True
    contenders = {contender["name"]: contender for contender in found["contenders"]}
    assert list(contenders) == ["transformers", "8", "100%", *baselines[1:]]
    for contender in contenders.values():
        assert contender["error"] is None
        assert {len(values) for values in contender["values"].values()} == {2}
        assert contender["medians"]["first_token_ms"] > contender["medians"]["prefill_ms"] > 0
        assert len(contender["details"]["tokens"]) == 4
        assert contender["decode"]["bytes_per_token"] > 0
        assert contender["prefill_flops"] > 0
        assert contender["memory"] is None  # there is no device
    assert contenders["100%"]["details"]["visual_tokens"] == dict.fromkeys(("total", "stage1", "stage2"), tokens)
    assert contenders["8"]["details"]["visual_tokens"] == {"total": tokens, "stage1": 12, "stage2": 4}
    assert contenders["100%"]["details"]["prompt_rows"] == contenders["transformers"]["details"]["prompt_rows"]
    for budget in ("8", "100%"):
        assert contenders[budget]["details"]["kv_bytes"] == content["bundles"][budget]["allocated_kv_bytes"]
    assert contenders["8"]["decode"]["bytes_per_token"] < contenders["100%"]["decode"]["bytes_per_token"]
    pairs = [(ratio["contender"], ratio["base"]) for ratio in found["ratios"]]
    assert pairs == [("8", "100%"), *((budget, base) for base in baselines for budget in ("8", "100%"))]
    for base in baselines:
        assert contenders[base]["details"]["tokens"] == contenders["transformers"]["details"]["tokens"]
    assert contenders["8"]["prefill_flops"] < contenders["100%"]["prefill_flops"] == contenders["transformers"]["prefill_flops"]
    # In float32 they must agree, near ties aside, and these weights make none.
    assert found["agreement"] == {"equal": 4, "of": 4, "finite": True}


def in_this_process(contenders: Sequence[Contender], task: Task, rules: Rules) -> list[Outcome]:
    """In place of take_turns, whose processes spend most of their time on imports."""
    outcomes = []
    for contender in contenders:
        outcome = Outcome(contender.name)
        try:
            module, _, function = contender.opener.partition(":")
            runner = getattr(importlib.import_module(module), function)(contender.target, task)
            runs = [runner.run() for _ in range(rules.repeats)]
        except StsExportError as error:
            outcome.error = str(error)
        else:
            outcome.values = {metric: [run[metric] for run in runs] for metric in runs[0]}
            outcome.details = runner.describe()
        outcomes.append(outcome)
    return outcomes


@pytest.mark.usefixtures("torch_threads")
def test_a_backend_that_fails_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other shape, under a backend that works and one that does not."""
    monkeypatch.setattr(comparison, "take_turns", in_this_process)
    settings = end_to_end.Settings(("8",), ("onnxruntime", "no-such-engine"), new_tokens=4, repeats=2, scratch=tmp_path)
    saved: list[str] = []

    def save(record: dict[str, Any]) -> None:
        saved.append(json.dumps(record["shapes"]["llava-1.5-7b"]["runs"], default=str))

    content = end_to_end.run([ModelShape("llava-1.5-7b", toy=True)], settings, Clock(300), save)
    shape = content["shapes"]["llava-1.5-7b"]
    names = [[one["name"] for one in run["contenders"]] for runs in saved for run in json.loads(runs)[:1]]
    assert ["transformers", "8", "100%"] in names  # before the compiled one, which may take all time
    check_shape(shape, 36, *BASELINES)
    found = shape["runs"][1]
    transformers, *bundles, _ = found["contenders"]
    assert transformers["error"] is None and transformers["values"]
    assert all("no backend 'no-such-engine'" in bundle["error"] for bundle in bundles) and len(bundles) == 2
    assert found["agreement"] is None and found["ratios"] == []
    assert [line.split(": ")[:3] for line in failures({"end-to-end": content})] == [
        ["failed", "llava-1.5-7b, no-such-engine", budget] for budget in ("8", "100%")
    ]
    assert not list(tmp_path.iterdir())  # emptied


def test_no_time_left(tmp_path: Path) -> None:
    """What did not run says so, for both shapes, and the file is there all the same."""
    shapes_asked = ("llava-1.5-7b", "qwen2.5-vl-7b")
    options = ("--shapes", ",".join(shapes_asked), "--baselines", "transformers")
    done = run(tmp_path, "--parts", "end-to-end", "--time-limit", "0", *options)
    assert done.returncode == 1
    shapes = record(tmp_path, "end-to-end")["shapes"]
    for shape in shapes.values():
        (found,) = shape["runs"]
        assert [contender["error"] for contender in found["contenders"]] == ["out of time"] * 3
    failed = [f"failed: {name}, onnxruntime: every contender: out of time" for name in shapes_asked]
    assert done.stdout.splitlines()[-2:] == failed
    assert tuple(shapes) == shapes_asked


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("arguments", [(), ("--toy", "--backends", "onnxruntime,tensorrt-rtx")])
def test_without_gpu(tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, "there is no CUDA GPU here", arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts=nothing"], "unknown 'nothing'; choose from kernels, sanitize, profile, smoke, end-to-end, ab"),
        (["--shapes=gpt-4"], "unknown 'gpt-4'; choose from llava-1.5-7b, llava-next-7b, qwen2.5-vl-7b"),
        (["--backends=onnxruntime,foo"], "unknown 'foo'; choose from onnxruntime, onnxruntime-cuda, tensorrt, tensorrt-rtx"),
        (["--budgets=64,x"], "budget 'x' is not a plain number"),
        (["--budgets=0"], "budget '0' is out of range"),
        (["--budgets=101%"], "budget '101%' is out of range"),
        (["--repeats=0"], "--repeats: '0' is no whole number of at least 1"),
        (["--new-tokens=1"], "--new-tokens: '1' is no whole number of at least 2"),
        (["--time-limit=-1"], "--time-limit: '-1' is no number of seconds"),
        (["--baselines=vllm"], "unknown 'vllm'; choose from transformers, transformers-compiled"),
        (["--tools=valgrind"], "unknown 'valgrind'; choose from memcheck, racecheck, synccheck, initcheck"),
        (["--label=a/b"], "--label: 'a/b' is no part of a file name"),
        (["--binaries=absent"], "--binaries absent is no folder"),
        (["--scratch=absent"], "--scratch absent is no folder"),
        (["--repeat=3"], "unrecognized arguments: --repeat=3"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, message, ["--toy", *arguments], capsys)


def refused(folder: Path, message: str, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, before anything is written."""
    with pytest.raises(SystemExit) as stopped:
        main(["--directory", str(folder), *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1
    assert not list(folder.iterdir())


def test_exit_code_of_the_script(tmp_path: Path) -> None:
    """It hands on that of Python, and its message."""
    answer = run(tmp_path, "--backends", "foo")
    assert answer.returncode == 2 and answer.stderr.startswith("scripts/gpu/run: argument --backends: unknown 'foo'")
    assert not list(tmp_path.iterdir())


def test_an_interpreter_that_cannot_install_a_copy(tmp_path: Path) -> None:
    """A fake: it has no sts-export, and its pip says a lot."""
    python = tmp_path / "python"
    said = "  error: subprocess-exited-with-error\\n  error: no such tool\\nhint: look above\\n"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 1\nprintf "{said}"; exit 1\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    answer = subprocess.run([RUN, "--toy"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 1 and len(answer.stderr.splitlines()) == 1 and answer.stdout == ""
    assert f"{python} cannot install a copy of sts-export (error: no such tool); install setuptools" in answer.stderr
