"""Ways to run one bundle, and a prompt length that was never seen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from scripts.gpu.ab import measure as ab
from scripts.gpu.ab.profiled import kernel_times, open_profiled
from scripts.gpu.ab.runner import LengthsRunner
from scripts.gpu.end_to_end.shapes import ModelShape
from scripts.gpu.end_to_end.task import Task
from scripts.gpu.pipelines import NO_OPERATORS, BundleTarget, open_pipeline
from scripts.gpu.progress import Clock
from scripts.gpu.reports.failures import failures
from scripts.gpu.reports.tables import format_tables
from sts_export.backends.choice import CUDA
from sts_export.backends.onnxruntime import operators
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.pipeline import Pipeline
from sts_export.measuring.turns import Contender, Outcome, Rules
from sts_export.testing.checkpoints import random_image, write_random_llava
from tests.backends.onnxruntime.fake_gpu import fake_gpu


def test_every_way_once(tmp_path: Path) -> None:
    library = tmp_path / "libsts_onnxruntime.so"
    ways = ab.ways(tmp_path, "cuda", library)
    assert len(ways) == len(set(ways.values())) == 4
    assert {(way.sdpa_kernel, way.operators) for way in ways.values()} == {
        (kernel, operators) for kernel in ("0", "3") for operators in (NO_OPERATORS, str(library))
    }
    assert len(ab.ways(tmp_path, "cuda", None)) == 2


def test_a_way_is_what_the_sessions_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake of a GPU: the attention kernels are those of the way, and no library is looked for."""
    write_random_llava(tmp_path / "checkpoint")
    bundle = export(ExportRequest(str(tmp_path / "checkpoint"), output=tmp_path / "bundle", budget="8", weights="link"))
    expected = Pipeline(bundle.folder, threads=1).generate("Why?", random_image(3), max_new_tokens=2).token_ids
    monkeypatch.setattr(operators, "find_operators", lambda bundle, given: pytest.fail("it was looked for"))
    faked = fake_gpu(monkeypatch)
    for kernel in ("0", "3"):
        faked.options.clear()
        with open_pipeline(BundleTarget(str(bundle.folder), CUDA, NO_OPERATORS, kernel)) as pipeline:
            assert {options["sdpa_kernel"] for options in faked.options} == {kernel}
            result = pipeline.generate("Why?", random_image(3), max_new_tokens=2)
        assert (result.token_ids, result.backend, result.operators) == (expected, CUDA, None)


def in_this_process(contenders: list[Contender], task: Task, rules: Rules) -> list[Outcome]:
    """In place of take_turns, whose processes spend most of their time on imports; with one more way, that fails."""
    (contender,) = contenders
    assert isinstance(contender.target, BundleTarget)
    if contender.opener.endswith(":open_profiled"):
        profiled = open_profiled(contender.target, task)
        assert profiled.run()["prefill_ms"] > 0
        return [Outcome(contender.name, profiled.describe())]
    runner = LengthsRunner(contender.target, task)
    lengths = []
    runs = []
    for _ in range(rules.repeats):
        runs.append(runner.run())
        lengths.append(runner.describe()["prompt_rows"]["lower"])
    assert len(set(lengths)) == 1  # the known prompt comes last
    values = {metric: [run[metric] for run in runs] for metric in runs[0]}
    return [Outcome(contender.name, runner.describe(), values), Outcome("broken", error="died")]


def test_the_whole_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ab, "take_turns", in_this_process)
    saved: list[dict[str, Any]] = []
    shape = ModelShape("llava-1.5-7b", toy=True)
    ab.run(shape, "8", Clock(300), saved.append, tmp_path, device="cpu", new_tokens=2, repeats=2)
    record = saved[0]
    assert {**record, "profiled": saved[1]["profiled"]} == saved[1]
    # There is no GPU to profile; both lengths ran.
    nothing = {"total_us": 0, "count": 0, "longest": []}
    assert saved[1]["profiled"]["details"]["kernels"] == {"2": nothing, "34": nothing}
    assert record["ways"][0]["medians"]["unseen_prefill_ms"] > 0
    assert failures({"ab": record}) == ["failed: ab: broken: died"]
    assert "kernels of cpu: in the file" in format_tables({"ab": saved[1]})
    table = format_tables({"ab": record})
    assert "llava-1.5-7b, budget 8:" in table and "unseen length ms" in table and "broken: died" in table
    assert not list(tmp_path.iterdir())  # emptied


def test_every_unseen_prompt_is_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []

    class Runner(LengthsRunner):
        def __init__(self) -> None:
            self._task, self._words = Task("", "Describe it.", 2, "cpu", "float32"), 0

        def answer(self, prompt: str) -> dict[str, float]:
            prompts.append(prompt)
            return {"prefill_ms": 1.0, "first_token_ms": 2.0}

    runner = Runner()
    for _ in range(3):
        runner.run()
    known = [prompt for prompt in prompts if prompt == "Describe it."]
    unseen = [len(prompt.split()) for prompt in prompts if prompt != "Describe it."]
    assert len(known) == 3 and unseen == [3, 4, 5]


def test_kernels_of_the_device_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, the longest first; what the host did is left out."""

    def event(name: str, device: DeviceType, us: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: us))

    class Profile:
        def __init__(self, activities: Any) -> None:
            pass

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def events(self) -> list[SimpleNamespace]:
            kernels = [event("a", DeviceType.CUDA, 2.0), event("b", DeviceType.CUDA, 5.0), event("a", DeviceType.CUDA, 1.0)]
            return [*kernels, event("host", DeviceType.CPU, 9.0)]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    found = kernel_times(lambda: None)
    longest = [{"name": "b", "count": 1, "total_us": 5.0}, {"name": "a", "count": 2, "total_us": 3.0}]
    assert found == {"total_us": 8.0, "count": 3, "longest": longest}
