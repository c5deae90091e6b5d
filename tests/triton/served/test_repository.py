"""The repository as the command writes it, in the real server: started by its own script, with the model of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sts_export import Pipeline
from sts_export.cli import main
from sts_export.testing.triton.server import triton_server
from tests.support.triton.asking import answer, check_same
from tests.support.triton.home import needs_triton

pytestmark = [needs_triton, pytest.mark.slow]
QUESTION = "What is left?"


def test_command_and_script(demo: Path, tmp_path: Path, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """A copied bundle; answers and features are the pipeline's."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    folder = tmp_path / "model_repository"
    options = ["--model-name", "answers", "--with-encoder", "--threads", "1", "--slots", "2"]
    assert main(["triton", str(demo), "-o", str(folder), *options]) == 0
    with triton_server(folder, script=folder / "run-server") as triton:
        expected = pipeline.generate(QUESTION, scenes[:2])
        check_same(answer(triton.grpc, "answers", text_input=QUESTION, image=scenes[:2]), expected)
        with InferenceServerClient(triton.grpc) as client:
            images = np.array([scenes[0], b"", scenes[1]], np.object_)
            tensor = InferInput("image", images.shape, "BYTES")
            tensor.set_data_from_numpy(images)
            found = client.infer("answers-encoder", [tensor])
    kept = [token for picture in expected.kept_stage1 for token in picture]
    assert found.as_numpy("kept").tolist() == kept
    assert found.as_numpy("kept_counts").tolist() == [len(picture) for picture in expected.kept_stage1]
    assert found.as_numpy("features").shape == (len(kept), pipeline.manifest.model.decoder.hidden_size)
