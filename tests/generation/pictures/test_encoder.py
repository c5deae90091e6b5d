"""Pictures alone are what they are in front of the decoder, which is not there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sts_export import Pipeline
from sts_export.backends.choice import OpenedBackend
from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.onnxruntime.backend import OnnxRuntimeBackend
from sts_export.backends.tensorrt.backend import TensorRtBackend
from sts_export.bundle.manifest import Bundle
from sts_export.errors import BackendError, BudgetError, BundleError, ImageError, RequestError
from sts_export.generation.pictures.encoder import EncodedPicture, PictureEncoder
from sts_export.generation.pictures.stage1 import ENCODER, SELECTOR
from sts_export.reference import ReferenceModel, generate
from sts_export.testing.fakes import tensorrt
from sts_export.testing.fakes.cuda import FakeCuda
from tests.generation.pictures.methods import METHODS, Plain
from tests.support.mixed_requests import SQUARE, TALL, WIDE, Opened
from tests.support.tensorrt_backend import open_on

PICTURES = [WIDE, SQUARE, TALL]
WITHOUT_TEXT = [name for name in METHODS if name != "cdpruner"]


def encoded(vlm: Pipeline, images: Sequence[Any], budget: str | None = None) -> list[EncodedPicture]:
    with PictureEncoder(vlm.bundle.folder, threads=1) as encoder:
        return encoder.encode(images, budget)


def as_in_front_of_the_decoder(vlm: Pipeline, image: Image.Image, budget: str | None = None) -> EncodedPicture:
    request = vlm.prepare("What?", image, budget=budget)
    chosen = vlm._graphs._stage1.choose(vlm._backend, request)
    return EncodedPicture(vlm._backend.fetch(chosen.visual["visual_embeds"])[0], chosen.kept[0])


def check_same(found: EncodedPicture, wanted: EncodedPicture) -> None:
    assert found.features.dtype == np.float32 and len(found.features) == len(found.kept)
    np.testing.assert_array_equal(found.features, wanted.features)
    np.testing.assert_array_equal(found.kept, wanted.kept)


@pytest.mark.parametrize("name", WITHOUT_TEXT)
def test_same_as_with_a_decoder(plain: Plain, name: str) -> None:
    vlm = plain(name)
    for image, found in zip(PICTURES, encoded(vlm, PICTURES), strict=True):
        check_same(found, as_in_front_of_the_decoder(vlm, image))
        result = vlm.generate("What?", image, max_new_tokens=1)
        assert sorted(found.kept[found.kept >= 0].tolist()) == result.kept_stage1[0]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen"])
def test_same_of_all_families(opened: Opened, family: str) -> None:
    vlm = opened(family)
    for budget in (None, "5"):
        for image, found in zip(PICTURES, encoded(vlm, PICTURES, budget), strict=True):
            check_same(found, as_in_front_of_the_decoder(vlm, image, budget))


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen"])
def test_same_as_the_reference(opened: Opened, family: str) -> None:
    vlm = opened(family)
    model = ReferenceModel.open(vlm.bundle.folder.parent / "checkpoint")
    for image, found in zip(PICTURES, encoded(vlm, PICTURES), strict=True):
        wanted = generate(model, "What?", [image], vlm.manifest.pruning, 1)
        assert found.kept.tolist() == wanted.kept_stage1[0]
        features = wanted.trace.visual_embeds[0].numpy()
        assert found.features.shape == features.shape == (len(found.kept), vlm.manifest.model.decoder.hidden_size)
        np.testing.assert_allclose(found.features, features, rtol=0, atol=1e-4 * np.abs(features).max())


def test_the_decoder_is_not_loaded(opened: Opened) -> None:
    with PictureEncoder(opened("llava").bundle.folder, threads=1) as encoder:
        assert isinstance(encoder._backend, OnnxRuntimeBackend)
        assert set(encoder._backend._sessions) == {ENCODER, SELECTOR}
        assert encoder.backend_name == "onnxruntime" and encoder.width == encoder.encode([WIDE])[0].features.shape[1]


def test_on_tensorrt(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines are loaded there, too."""
    vlm = opened("llava")
    on_gpu = open_on(vlm.bundle.folder)

    def two_engines(bundle: Bundle, *_: Any) -> OpenedBackend:
        module = tensorrt.module("tensorrt", on_gpu.engines.record.tensorrt)
        return OpenedBackend("tensorrt", TensorRtBackend(bundle, on_gpu.engines, module, Cuda(FakeCuda())))

    monkeypatch.setattr("sts_export.backends.choice.open_backend", two_engines)
    with PictureEncoder(vlm.bundle.folder) as encoder:
        assert isinstance(encoder._backend, TensorRtBackend)
        assert set(encoder._backend._engines) == {ENCODER, SELECTOR}
        found = encoder.encode(PICTURES)
    whole = on_gpu.pipeline()
    for image, one in zip(PICTURES, found, strict=True):
        check_same(one, as_in_front_of_the_decoder(whole, image))
    whole.close()


def test_threads_share_it(opened: Opened) -> None:
    vlm = opened("llava")
    wanted = encoded(vlm, PICTURES)
    failures: list[BaseException] = []
    with PictureEncoder(vlm.bundle.folder, threads=1) as encoder:

        def work() -> None:
            try:
                for found, one in zip(encoder.encode(PICTURES), wanted, strict=True):
                    check_same(found, one)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_no_pictures(opened: Opened) -> None:
    assert encoded(opened("llava"), []) == []


def test_a_method_that_reads_the_prompt(plain: Plain) -> None:
    with pytest.raises(BundleError, match=r"cdpruner of .* chooses by the text of the prompt.*; export with another method"):
        PictureEncoder(plain("cdpruner").bundle.folder)


def test_wrong_bundles_and_settings(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        PictureEncoder(tmp_path / "none")
    folder = opened("llava").bundle.folder
    with pytest.raises(RequestError, match="there is no backend 'abacus'"):
        PictureEncoder(folder, backend="abacus")
    for threads in (0, 1025):
        with pytest.raises(RequestError, match="threads must be at"):
            PictureEncoder(folder, threads=threads)


def test_wrong_pictures_and_budgets(opened: Opened) -> None:
    vlm = opened("llava")
    with pytest.raises(ImageError):
        encoded(vlm, [b"no picture"])
    with pytest.raises(BudgetError, match="unreachable"):
        encoded(vlm, [WIDE], "1000")
    with pytest.raises(RequestError, match="put one into a list"):
        encoded(vlm, "cat.jpg")


def test_after_the_end(opened: Opened) -> None:
    encoder = PictureEncoder(opened("llava").bundle.folder, threads=1)
    encoder.close()
    with pytest.raises(BackendError, match="closed"):
        encoder.encode([WIDE])
