"""Steps of the end-to-end part that the toy run does not reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch._dynamo
from torch._dynamo.utils import counters
from transformers import AutoProcessor

from scripts.gpu.end_to_end import measure as end_to_end
from scripts.gpu.end_to_end.checkpoint import write_checkpoint
from scripts.gpu.end_to_end.shapes import ModelShape
from scripts.gpu.end_to_end.task import Task
from scripts.gpu.machine.environment import missing_backends
from scripts.gpu.progress import Clock
from sts_export.bundle.manifest import Bundle
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.checkpoints import write_random_llava
from sts_export.testing.public_models import write_sparse_checkpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("end_to_end")
    write_random_llava(folder / "checkpoint")
    return export(ExportRequest(str(folder / "checkpoint"), output=folder / "bundle", budget="8", weights="link"))


def test_engines_are_built(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    builds = end_to_end.build_engines({"8": bundle}, "tensorrt-rtx", Clock(300))
    assert builds["8"]["error"] is None
    assert len(list((bundle.folder / "engines" / "tensorrt-rtx").glob("*/*.engine"))) == 4


def test_a_build_that_fails(bundle: Bundle) -> None:
    builds = end_to_end.build_engines({"8": bundle}, "no-such-runtime", Clock(300))
    assert "no-such-runtime" in builds["8"]["error"]


def test_no_time_to_build(bundle: Bundle) -> None:
    assert end_to_end.build_engines({"8": bundle}, "tensorrt-rtx", Clock(0))["8"]["error"] == "out of time"


def test_backends_that_cannot_run_are_left_out() -> None:
    missing = missing_backends()
    chosen, left_out = end_to_end.choose_backends(None, toy=False)
    assert left_out == missing and not set(chosen) & set(missing)
    assert end_to_end.choose_backends(["tensorrt"], toy=False)[1].keys() <= {"tensorrt"}


@pytest.mark.parametrize(("name", "tokens"), [("llava-1.5-7b", 576), ("llava-next-7b", 2880 + 48)])
def test_the_picture_makes_the_most_tokens(tmp_path: Path, name: str, tokens: int) -> None:
    """By transformers' processor at the public configuration: 2 x 2 tiles and the whole, a newline for each of 48 rows."""
    shape = ModelShape(name, toy=False)
    processor = AutoProcessor.from_pretrained(write_sparse_checkpoint(tmp_path, shape.hub_id), backend="pil")
    inputs = processor(images=end_to_end.picture(shape.picture_side), text="USER: <image>", return_tensors="np")
    assert int((inputs["input_ids"] == 32000).sum()) == tokens


@pytest.mark.usefixtures("torch_threads")
def test_a_decode_step_is_compiled_once(tmp_path: Path) -> None:
    """Also for the tokens that are described, which come from elsewhere: at 7B compiling takes a minute."""
    from scripts.gpu.end_to_end.compiled_runner import CompiledRunner

    shape = ModelShape("llava-1.5-7b", toy=True)
    write_checkpoint(tmp_path / "checkpoint", shape, "cpu")
    end_to_end.picture(shape.picture_side).save(tmp_path / "picture.png")
    task = Task(str(tmp_path / "picture.png"), end_to_end.PROMPT, 4, "cpu", shape.dtype)
    torch._dynamo.reset()  # what earlier tests compiled would serve, or be taken for a size that varies
    counters.clear()
    runner = CompiledRunner(str(tmp_path / "checkpoint"), task)
    runner.run()
    assert len(runner.describe()["tokens"]) == 4
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
