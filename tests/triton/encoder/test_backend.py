"""The model gives tensors of all pictures of a request, or one line, and no request hurts another one."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sts_export.errors import BackendError
from sts_export.generation.pictures.encoder import EncodedPicture, PictureEncoder
from sts_export.triton.device import VISIBLE
from sts_export.triton.encoder.backend import TritonPythonModel
from sts_export.triton.settings import ModelSettings
from sts_export.triton.tensors import DTYPES, ENCODER_INPUTS, encoder_outputs
from tests.support.mixed_requests import SQUARE, TALL, WIDE, Opened
from tests.triton.encoder.fake_backend import InferenceResponse, Logger, Request, TritonModelException, install

Start = Callable[..., TritonPythonModel]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def arguments(folder: Path, **parameters: str) -> dict[str, str]:
    """As Triton gives them."""
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    return {
        "model_config": json.dumps(config),
        "model_repository": str(folder.parent),
        "model_version": folder.name,
        "model_instance_kind": "CPU",
    }


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Logger:
    return install(monkeypatch)


@pytest.fixture
def start(logger: Logger, opened: Opened, tmp_path: Path) -> Iterator[Start]:
    """A model with a bundle beside model.py."""
    started = []

    def model(family: str = "llava", **parameters: str) -> TritonPythonModel:
        version = tmp_path / "encoder" / "1"
        version.mkdir(parents=True, exist_ok=True)
        if not (version / "bundle").exists():
            (version / "bundle").symlink_to(opened(family).bundle.folder)
        one = TritonPythonModel()
        one.initialize(arguments(version, threads="1", **parameters))
        started.append(one)
        return one

    yield model
    for one in started:
        one.finalize()


def wanted(vlm: Any, images: list[Image.Image], budget: str | None = None) -> list[EncodedPicture]:
    with PictureEncoder(vlm.bundle.folder, threads=1) as encoder:
        return encoder.encode(images, budget)


def ask(model: TritonPythonModel, **values: list[bytes]) -> InferenceResponse:
    (response,) = model.execute([Request.of(**values)])
    assert isinstance(response, InferenceResponse)
    return response


def check(response: InferenceResponse, pictures: list[EncodedPicture]) -> None:
    assert response.error is None
    np.testing.assert_array_equal(response["features"], np.concatenate([one.features for one in pictures]))
    np.testing.assert_array_equal(response["kept"], np.concatenate([one.kept for one in pictures]))
    assert response["kept_counts"].tolist() == [len(one.kept) for one in pictures]


def check_failed(response: InferenceResponse, code: str, line: str) -> None:
    assert response.error is not None and response.output_tensors == []
    assert response.error.code == code and line in response.error.message and "\n" not in response.error.message


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen"])
def test_pictures_in_all_forms(start: Start, opened: Opened, family: str) -> None:
    model, images = start(family), [WIDE, SQUARE, TALL]
    as_base64 = base64.b64encode(png(SQUARE))
    url = b"data:image/png;base64," + base64.b64encode(png(TALL))
    response = ask(model, image=[png(WIDE), b"", as_base64], image_url=[b"", url])
    check(response, wanted(opened(family), images))


def test_tensors_are_those_of_the_configuration(start: Start, opened: Opened) -> None:
    response = ask(start(), image=[png(WIDE)])
    specs = encoder_outputs(opened("llava").manifest.model.decoder.hidden_size)
    assert [tensor.name for tensor in response.output_tensors] == [spec.name for spec in specs]
    for tensor, spec in zip(response.output_tensors, specs, strict=True):
        assert tensor.array.dtype == DTYPES[spec.kind] and tensor.array.ndim == len(spec.dims)
        assert all(dim in (-1, size) for dim, size in zip(spec.dims, tensor.array.shape, strict=True))
    assert [spec.name for spec in ENCODER_INPUTS] == ["image", "image_url", "budget"]


def test_a_budget(start: Start, opened: Opened) -> None:
    response = ask(start(), image=[png(WIDE), png(SQUARE)], budget=[b"4"])
    check(response, wanted(opened("llava"), [WIDE, SQUARE], "4"))


def test_files_where_they_are_allowed(start: Start, opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(WIDE))
    url = (tmp_path / "cat.png").as_uri().encode()
    check(ask(start(allow_image_folder=str(tmp_path)), image_url=[url]), wanted(opened("llava"), [WIDE]))
    check_failed(ask(start(), image_url=[url]), "INVALID_ARG", "file")


def test_one_wrong_request_among_others(start: Start, opened: Opened) -> None:
    requests = [Request.of(image=[value]) for value in (png(WIDE), b"no picture", png(SQUARE))]
    first, second, third = start().execute(requests)
    check(first, wanted(opened("llava"), [WIDE]))
    check_failed(second, "INVALID_ARG", "base64")
    check(third, wanted(opened("llava"), [SQUARE]))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "there is no picture; give image or image_url"),
        ({"image": [b""], "image_url": [b""]}, "there is no picture"),
        ({"image": [png(WIDE), b"no picture"]}, "picture 2 of 2: "),
        ({"image": [png(WIDE)[:200]]}, "image"),
        ({"image_url": [b"https://example.com/cat.png"]}, "this server fetches no pictures"),
        ({"image_url": [b"\xff"]}, "image_url is not text in UTF-8"),
        ({"image": [png(WIDE)], "budget": [b"1000"]}, "budget 1000 is unreachable"),
        ({"image": [png(WIDE)], "budget": [b"many"]}, "many"),
        ({"image": [png(WIDE)], "budget": [b"\xff"]}, "budget is not text in UTF-8"),
    ],
)
def test_wrong_requests(start: Start, values: dict[str, list[bytes]], line: str) -> None:
    check_failed(ask(start(), **values), "INVALID_ARG", line)


def test_a_picture_that_is_too_large(start: Start) -> None:
    check_failed(ask(start(max_picture="100"), image=[png(WIDE)]), "INVALID_ARG", "larger than 100 bytes")


def test_an_engine_that_fails(start: Start, monkeypatch: pytest.MonkeyPatch, logger: Logger) -> None:
    model = start()

    def fail(error: Exception) -> None:
        def encode(*_: object) -> None:
            raise error

        monkeypatch.setattr(model._encoder, "encode", encode)

    fail(BackendError("not enough memory; end what else runs"))
    check_failed(ask(model, image=[png(WIDE)]), "INTERNAL", "not enough memory; end what else runs")
    assert logger.errors == []
    fail(ZeroDivisionError("a secret"))
    response = ask(model, image=[png(WIDE)])
    check_failed(response, "INTERNAL", "the model failed at this request; the server's log says why")
    assert "Traceback" in logger.errors[0] and "a secret" in logger.errors[0]


def test_an_instance_sees_its_gpu(logger: Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is opened, which here fails."""
    monkeypatch.setenv(VISIBLE, "4,6")
    args = {**arguments(tmp_path / "1"), "model_instance_kind": "GPU", "model_instance_device_id": "1"}
    with pytest.raises(TritonModelException):
        TritonPythonModel().initialize(args)
    assert os.environ[VISIBLE] == "6"


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"bundle": "none"}, "does not exist"),
        ({"budle": "x"}, "'budle' that is not known"),
        ({"backend": "abacus"}, "there is no backend 'abacus'"),
        ({"allow_image_folder": "/does/not/exist"}, "is no folder of pictures"),
    ],
)
def test_what_cannot_be_opened(logger: Logger, tmp_path: Path, parameters: dict[str, str], line: str) -> None:
    model = TritonPythonModel()
    with pytest.raises(TritonModelException, match=line) as raised:
        model.initialize(arguments(tmp_path, **parameters))
    assert "\n" not in str(raised.value)
    model.finalize()


def test_all_parameters_are_taken(start: Start) -> None:
    given = {key: value for key, value in ModelSettings().parameters().items() if key != "threads"}
    assert ask(start(**given, EXECUTION_ENV_PATH="/env"), image=[png(WIDE)]).error is None


def test_after_the_end(start: Start) -> None:
    model = start()
    model.finalize()
    check_failed(ask(model, image=[png(WIDE)]), "INTERNAL", "closed")
