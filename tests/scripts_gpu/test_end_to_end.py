"""Steps of the end-to-end part that the toy run does not reach."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoProcessor

from scripts.gpu import end_to_end
from scripts.gpu.environment import missing_backends
from scripts.gpu.progress import Clock
from scripts.gpu.shapes import ModelShape
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
