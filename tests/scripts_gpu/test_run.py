"""The whole command with toy models on the CPU: what it writes, not what it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

RUN = Path(__file__).parents[2] / "scripts" / "gpu" / "run"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(RUN), "--toy", "--new-tokens", "4", "--repeats", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def record(folder: Path, part: str) -> dict[str, Any]:
    """The one file of a part."""
    (file,) = folder.glob(f"*-toy-{part}.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_the_whole_command(tmp_path: Path) -> None:
    """Once, since it takes a while: both parts, both shapes."""
    done = run(tmp_path, "--output", "results", "--commit", "0123abc")
    assert done.returncode == 0, done.stderr
    for line in ("transformers  ", "unpruned  ", "budget 8  ", "these figures mean nothing"):
        assert line in done.stdout
    lines = [line for line in done.stderr.splitlines() if " s] " in line]
    seconds = [float(line[1:].split(" s]")[0]) for line in lines]
    assert len(lines) > 10 and seconds == sorted(seconds)  # progress
    records = {part: record(tmp_path / "results", part) for part in ("kernels", "end-to-end")}
    for content in records.values():
        assert content["commit"] == "0123abc" and content["toy"] is True
        assert content["machine"]["processors"] == os.cpu_count()
        assert content["versions"]["transformers"] and content["versions"]["onnxruntime"]
    check_kernels(records["kernels"])
    for shape, tokens in (("llava-1.5-7b", 36), ("llava-next-7b", 180)):
        check_shape(records["end-to-end"]["shapes"][shape], tokens)


def check_kernels(content: dict[str, Any]) -> None:
    assert content["build"]["error"] is None
    assert content["checks"]["checks"] > 0 and not content["checks"]["failures"] and content["checks"]["error"] is None
    assert content["timings"] == [] and content["sanitizer"] == {}  # both need a GPU


def check_shape(content: dict[str, Any], tokens: int) -> None:
    """One model whose picture makes that many visual tokens."""
    assert content["error"] is None
    assert content["checkpoint"]["bytes"] > 0
    (found,) = content["runs"]
    assert found["backend"] == "onnxruntime" and found["together"] is True
    contenders = {contender["name"]: contender for contender in found["contenders"]}
    assert list(contenders) == ["transformers", "8", "100%"]
    for contender in contenders.values():
        assert contender["error"] is None
        assert {len(values) for values in contender["values"].values()} == {2}
        assert contender["medians"]["first_token_ms"] > contender["medians"]["prefill_ms"] > 0
        assert len(contender["details"]["tokens"]) == 4
        assert contender["decode"]["bytes_per_token"] > 0
        assert contender["memory"] is None  # there is no device
    assert contenders["100%"]["details"]["visual_tokens"] == dict.fromkeys(("total", "stage1", "stage2"), tokens)
    assert contenders["8"]["details"]["visual_tokens"] == {"total": tokens, "stage1": 12, "stage2": 4}
    assert contenders["100%"]["details"]["prompt_rows"] == contenders["transformers"]["details"]["prompt_rows"]
    for budget in ("8", "100%"):
        assert contenders[budget]["details"]["kv_bytes"] == content["bundles"][budget]["allocated_kv_bytes"]
    assert contenders["8"]["decode"]["bytes_per_token"] < contenders["100%"]["decode"]["bytes_per_token"]
    pairs = [(ratio["contender"], ratio["base"]) for ratio in found["ratios"]]
    assert pairs == [("8", "100%"), ("8", "transformers"), ("100%", "transformers")]
    # In float32 they must agree, near ties aside, and these weights make none.
    assert found["agreement"] == {"equal": 4, "of": 4, "finite": True}


def test_a_backend_that_fails_leaves_the_rest(tmp_path: Path) -> None:
    arguments = ("--parts", "end-to-end", "--shapes", "llava-1.5-7b", "--backends", "no-such-engine")
    assert run(tmp_path, *arguments).returncode == 1
    (found,) = record(tmp_path, "end-to-end")["shapes"]["llava-1.5-7b"]["runs"]
    transformers, *bundles = found["contenders"]
    assert transformers["error"] is None and transformers["values"]
    assert all("no backend 'no-such-engine'" in bundle["error"] for bundle in bundles) and len(bundles) == 2
    assert found["agreement"] is None and found["ratios"] == []


def test_no_time_left(tmp_path: Path) -> None:
    """What did not run says so, and the file is there all the same."""
    assert run(tmp_path, "--parts", "end-to-end", "--shapes", "llava-1.5-7b", "--time-limit", "0").returncode == 1
    (found,) = record(tmp_path, "end-to-end")["shapes"]["llava-1.5-7b"]["runs"]
    assert [contender["error"] for contender in found["contenders"]] == ["out of time"] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_gpu(tmp_path: Path) -> None:
    command = [str(RUN), "--output", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert answer.returncode == 2 and "torch sees no CUDA device; --toy" in answer.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", ["--parts=nothing", "--shapes=gpt-4"])
def test_unknown_names(tmp_path: Path, argument: str) -> None:
    answer = run(tmp_path, argument)
    assert answer.returncode == 2 and "choose from" in answer.stderr
    assert not list(tmp_path.iterdir())
