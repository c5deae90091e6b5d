"""The demo model's answers, engine beside engine; and a captured copy, on a fake of CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.gpu.pipelines import BundleTarget, open_pipeline
from scripts.gpu.progress import Clock
from scripts.gpu.reports.failures import failures
from scripts.gpu.reports.tables import format_tables
from scripts.gpu.smoke import measure as smoke
from scripts.gpu.smoke.answers import Answer, compare, is_equal
from scripts.gpu.smoke.capture import capture_and_replay
from scripts.gpu.smoke.engines import engines
from sts_export.backends.choice import CUDA
from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.onnxruntime import operators
from sts_export.generation.pipeline import Pipeline
from sts_export.testing.fakes.cuda import FakeCuda
from tests.backends.onnxruntime.fake_gpu import fake_gpu

ANSWERS = [Answer([1, 2], [[0, 3], [3]]), Answer([4, 5], [[1, 2], [1]])]


@pytest.mark.parametrize(
    ("changed", "tokens", "kept"),
    [
        (ANSWERS[1], 2, 2),
        (Answer([4, 6], [[1, 2], [1]]), 1, 2),
        (Answer([4, 5], [[1, 2], [2]]), 2, 1),
    ],
)
def test_what_differs(changed: Answer, tokens: int, kept: int) -> None:
    found = compare([ANSWERS[0], changed], ANSWERS)
    assert (found["of"], found["equal_tokens"], found["equal_kept"]) == (2, tokens, kept)
    assert is_equal(found) is (tokens == kept == 2)
    assert (found["first_difference"] or {}).get("question") == (None if is_equal(found) else 1)


def test_nothing_asked_is_not_equal() -> None:
    assert not is_equal(compare([], []))


def test_who_is_compared_with_whom(tmp_path: Path) -> None:
    """The GPU with the CPU, and operators with what they replace."""
    library = tmp_path / "libsts_onnxruntime.so"
    assert [(one.name, one.against) for one in engines("cuda", library)] == [
        ("cpu", None),
        ("cuda", "cpu"),
        ("cuda-operators", "cuda"),
    ]
    assert [one.name for one in engines("cuda", None)] == ["cpu", "cuda"]
    assert [one.operators for one in engines("cuda", library)] == [None, None, library]


def test_the_whole_part(tmp_path: Path) -> None:
    """On the CPU: one number of threads against another."""
    saved: list[dict[str, Any]] = []
    smoke.run(Clock(300), saved.append, tmp_path, device="cpu", dtypes=("float16",))
    first, second = saved[-1]["engines"]
    assert first["error"] is None and "comparison" not in first
    assert second["comparison"] == {"of": 6, "equal_tokens": 6, "equal_kept": 6, "first_difference": None}
    assert failures({"smoke": saved[-1]}) == []
    assert "float16, cpu-2-threads against cpu: equal tokens 6, kept indices 6 of 6" in format_tables({"smoke": saved[-1]})


def test_on_a_fake_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a library of operators, also where there is one: a fake cannot load it."""
    monkeypatch.setattr(operators, "find_operators", lambda bundle, given: pytest.fail("it was looked for"))
    monkeypatch.setattr(smoke, "capture_and_replay", lambda: {"right": True, "error": None})

    def opened(target: BundleTarget, threads: int | None) -> Pipeline:
        if target.backend == CUDA:
            fake_gpu(monkeypatch)  # sessions of the CPU before it are the CPU's
        return open_pipeline(target, threads)

    monkeypatch.setattr(smoke, "open_pipeline", opened)
    saved: list[dict[str, Any]] = []
    smoke.run(Clock(300), saved.append, tmp_path, device="cuda", dtypes=("float32",))
    assert failures({"smoke": saved[-1]}) == []
    _, cuda = saved[-1]["engines"]
    assert cuda["engine"] == "cuda" and cuda["comparison"]["equal_kept"] == 6


class Otherwise(Pipeline):
    """Hears another question."""

    def generate(self, prompt: Any, images: Any = (), **settings: Any) -> Any:
        return super().generate("Why?", images, **settings)


def test_an_engine_that_cannot_run_and_one_that_answers_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(target: BundleTarget, threads: int | None) -> Pipeline:
        if target.operators:
            raise RuntimeError("no such\nlibrary")
        return (Otherwise if target.backend == "onnxruntime-cuda" else Pipeline)(target.bundle, threads=1)

    monkeypatch.setattr(smoke, "open_pipeline", opened)
    monkeypatch.setattr(smoke, "capture_and_replay", lambda: {"right": False, "error": None})
    saved: list[dict[str, Any]] = []
    smoke.run(Clock(300), saved.append, tmp_path, device="cuda", operators=tmp_path / "lib.so", dtypes=("float32",))
    capture, cuda, operators = failures({"smoke": saved[-1]})
    assert capture == "failed: smoke: capture: other bytes came back"
    assert cuda.startswith("failed: smoke: float32, cuda: other answers than cpu: ")
    assert operators == "failed: smoke: float32, cuda-operators: RuntimeError: no such library"


def test_capture() -> None:
    assert capture_and_replay(Cuda(FakeCuda())) == {"right": True, "error": None}


def test_a_capture_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever bindings of another version raise."""

    def refused(self: Cuda, work: Any) -> None:
        raise TypeError("takes 3\narguments")

    monkeypatch.setattr(Cuda, "capture", refused)
    assert capture_and_replay(Cuda(FakeCuda())) == {"right": False, "error": "TypeError: takes 3 arguments"}
