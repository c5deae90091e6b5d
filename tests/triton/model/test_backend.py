"""What the model does at Triton's calls: settings reach the engine, and everything is given back at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.triton.device import VISIBLE
from sts_export.triton.model import backend
from sts_export.triton.model.backend import TritonPythonModel
from sts_export.triton.settings import ModelSettings
from tests.support.mixed_requests import Opened
from tests.triton.model.fake_metrics import FakeServer
from tests.triton.model.fake_requests import PB_UTILS, Request


class Logger:
    lines: list[str]

    def __init__(self) -> None:
        self.lines = []

    def log_info(self, line: str) -> None:
        self.lines.append(line)

    def log_warn(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """Whose process this is, as far as the model uses it."""
    fake = FakeServer()
    module: Any = ModuleType("triton_python_backend_utils")
    for source in (PB_UTILS, fake.process()):
        for name in dir(source):
            if not name.startswith("_"):
                setattr(module, name, getattr(source, name))
    module.Logger = Logger()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.setattr("gc.freeze", lambda: None)  # of this process other tests want more
    return fake


@pytest.fixture
def args(opened: Opened, tmp_path: Path) -> dict[str, str]:
    """Of Triton, with the settings that a test has in ``parameters``."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "bundle").symlink_to(opened("llava").bundle.folder)
    return {
        "model_repository": str(tmp_path / "m"),
        "model_version": "1",
        "model_name": "m",
        "model_instance_name": "m_0_0",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_config": config(),
    }


def config(**settings: Any) -> str:
    chosen = ModelSettings(**{"threads": 1, "slots": 2, **settings})
    return json.dumps({"parameters": {key: {"string_value": text} for key, text in chosen.parameters().items()}})


@pytest.fixture
def model(server: FakeServer) -> Iterator[TritonPythonModel]:
    made = TritonPythonModel()
    yield made
    made.finalize()


def test_settings_reach_the_engine(model: TritonPythonModel, args: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spied(pipeline: Any, **options: Any) -> Any:
        seen.update(options)
        return Scheduler(pipeline, **options)

    monkeypatch.setattr(backend, "Scheduler", spied)
    args["model_config"] = config(slots=3, max_queue_size=5, longest_wait=7.5, reuse_prefixes=False, max_picture=10)
    model.initialize(args)
    assert seen == {"slots": 3, "most_waiting": 8, "longest_wait": 7.5, "reuse_prefixes": False}
    request = Request.of(text_input=b"What?", image=b"\x89PNG\r\n\x1a\n and more")
    model.execute([request])
    error = request.sender.end().error
    assert error is not None and "larger than 10 bytes" in error.message


def test_it_answers_until_it_is_finalized(
    model: TritonPythonModel, args: dict[str, str], server: FakeServer, opened: Opened
) -> None:
    model.initialize(args)
    assert model.is_ready()
    request = Request.of(text_input=b"What?", max_tokens=3, ignore_eos=True)
    model.execute([request])
    text = next(one.array for one in request.sender.end().output_tensors if one.label == "text_output")
    assert text[0, 0].decode() == opened("llava").generate("What?", max_new_tokens=3, ignore_eos=True).text
    pipeline = model._engine.pipeline
    assert 'instance="m_0_0"' in server.text()
    model.finalize()
    assert not model.is_ready() and 'instance="m_0_0"' not in server.text(), "metrics would stay in the server"
    with pytest.raises(Exception, match="closed"):
        pipeline.generate("What?")


def test_an_instance_sees_its_gpu(model: TritonPythonModel, args: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "4,6")
    model.initialize({**args, "model_instance_kind": "GPU", "model_instance_device_id": "1"})
    assert os.environ[VISIBLE] == "6"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"bundle": "elsewhere"}, "does not exist"),
        ({"allow_image_folder": "/does/not/exist"}, "is no folder of pictures"),
        ({"allow_image_hosts": ("http://a",)}, "http://a"),
        ({"backend": "tensorrt"}, "tensorrt"),
    ],
)
def test_what_cannot_be_loaded(server: FakeServer, args: dict[str, str], settings: dict[str, Any], line: str) -> None:
    """One line, and a model that can still be finalized."""
    model = TritonPythonModel()
    with pytest.raises(sys.modules["triton_python_backend_utils"].TritonModelException, match=line) as error:
        model.initialize({**args, "model_config": config(**settings)})
    assert "\n" not in str(error.value)
    model.finalize()
