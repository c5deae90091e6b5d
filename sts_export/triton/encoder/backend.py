"""Pictures -> what a decoder would get of them, as a model of Triton's Python backend.

Source: README.md of github.com/triton-inference-server/python_backend.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.errors import BudgetError, ImageError, RequestError, StsExportError
from sts_export.generation.pictures.encoder import EncodedPicture, PictureEncoder
from sts_export.media.synthetic import synthetic_image
from sts_export.serving.pictures.reading import picture_bytes
from sts_export.serving.pictures.rules import PictureRules
from sts_export.triton.device import choose_gpu
from sts_export.triton.pictures import read_image
from sts_export.triton.settings import read_parameters
from sts_export.triton.tensors import ENCODER_INPUTS

IMAGE, IMAGE_URL, BUDGET = (tensor.name for tensor in ENCODER_INPUTS)
_CRASHED = "the model failed at this request; the server's log says why"


class TritonPythonModel:
    """What Triton calls.  Not decoupled, without batching: one response for each request, whose pictures are its own batch."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle and encode a picture, so that the first request does not wait for what an engine does only once.

        Args:
            args: as Triton gives them.

        Raises:
            TritonModelException: a parameter, the bundle or the engine is wrong: one line.
        """
        import triton_python_backend_utils as pb_utils

        choose_gpu(args, os.environ)
        self._pb_utils = pb_utils
        try:
            given = json.loads(args["model_config"]).get("parameters", {})
            settings = read_parameters({key: value["string_value"] for key, value in given.items()})
            self._rules = settings.picture_rules
            folder = settings.bundle_folder(Path(args["model_repository"]) / args["model_version"])
            self._encoder = PictureEncoder(folder, backend=settings.backend or None, threads=settings.threads or None)
            self._encoder.encode([synthetic_image(0)])
        except StsExportError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request."""
        return [self._response(request) for request in requests]

    def finalize(self) -> None:
        """Give back what the engine holds; nothing happens where it was not opened."""
        encoder = getattr(self, "_encoder", None)
        if encoder is not None:
            encoder.close()

    def _response(self, request: Any) -> Any:
        """Whatever goes wrong is this request's error, and no other's."""
        codes = self._pb_utils.TritonError
        try:
            return self._pb_utils.InferenceResponse(output_tensors=self._tensors(self._encoded(request)))
        except RequestError as error:
            return self._failed(str(error), codes.INVALID_ARG)
        except StsExportError as error:
            return self._failed(str(error), codes.INTERNAL)
        except Exception:
            self._pb_utils.Logger.log_error(traceback.format_exc())
            return self._failed(_CRASHED, codes.INTERNAL)

    def _failed(self, line: str, code: Any) -> Any:
        return self._pb_utils.InferenceResponse(output_tensors=[], error=self._pb_utils.TritonError(line, code))

    def _encoded(self, request: Any) -> list[EncodedPicture]:
        """One picture at a time: of many, only one is decoded."""
        images, urls, budgets = (self._values(request, name) for name in (IMAGE, IMAGE_URL, BUDGET))
        readers = list(_readers(images, urls, self._rules))
        if not readers:
            raise ImageError(f"there is no picture; give {IMAGE} or {IMAGE_URL}")
        budget = _text(BUDGET, budgets[0], BudgetError) if budgets else None
        found: list[EncodedPicture] = []
        for number, read in enumerate(readers, 1):
            try:
                found += self._encoder.encode([read()], budget)
            except ImageError as error:
                if len(readers) == 1:
                    raise
                raise ImageError(f"picture {number} of {len(readers)}: {error}") from None
        return found

    def _values(self, request: Any, name: str) -> list[bytes]:
        tensor = self._pb_utils.get_input_tensor_by_name(request, name)
        return [] if tensor is None else list(tensor.as_numpy().reshape(-1))

    def _tensors(self, pictures: Sequence[EncodedPicture]) -> list[Any]:
        arrays: dict[str, NDArray[Any]] = {
            "features": np.concatenate([one.features for one in pictures]),
            "kept": np.concatenate([one.kept for one in pictures]).astype(np.int32),
            "kept_counts": np.array([len(one.kept) for one in pictures], np.int32),
        }
        return [self._pb_utils.Tensor(name, array) for name, array in arrays.items()]


def _readers(images: Sequence[bytes], urls: Sequence[bytes], rules: PictureRules) -> Iterator[Callable[[], bytes]]:
    """Of all pictures that are not empty; each gives the bytes of its file, or raises ImageError."""
    for value in filter(None, images):
        yield partial(read_image, value, rules.most_bytes)
    for value in filter(None, urls):
        yield partial(_read_url, value, rules)


def _read_url(value: bytes, rules: PictureRules) -> bytes:
    return picture_bytes(_text(IMAGE_URL, value, ImageError), rules)


def _text(name: str, value: bytes, error: type[RequestError]) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise error(f"{name} is not text in UTF-8; correct it") from None
