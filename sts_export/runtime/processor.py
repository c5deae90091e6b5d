"""Image → pixel values, by the checkpoint's own image processor settings and transformers' PIL processors (no torch)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sts_export.errors import CheckpointError, ImageError


def _hide_torch_advice(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in str(record.msg)


# transformers advises to install PyTorch on every import without it; running without it is the point here.
logging.getLogger("transformers").addFilter(_hide_torch_advice)

# Checkpoint's processor type → transformers' processor that needs neither torch nor torchvision.  A checkpoint may name
# the type with the suffix Fast or Pil, or as the feature extractor it once was; families add theirs here.
PIL_PROCESSORS: dict[str, str] = {
    "CLIPImageProcessor": "CLIPImageProcessorPil",
}
_PROCESSOR_FILE = "processor_config.json"
_PREPROCESSOR_FILE = "preprocessor_config.json"


class ImageProcessor:
    """Resizes, crops and normalises one image.

    Args:
        processor: a PIL image processor of transformers.
        source: where its settings came from, for messages.
    """

    def __init__(self, processor: Any, source: Path) -> None:
        self._processor = processor
        self._source = source

    def pixel_values(self, image: Image.Image) -> NDArray[np.float32]:
        """RGB image → ``pixel_values: [1, 3, H, W] float32``.

        Raises:
            ImageError: the processor cannot take this image.
        """
        try:
            # uint8 [3, 1, 1] or [3, 3, 3] leaves no doubt here: transformers takes PIL images as height x width x channel.
            values = np.asarray(self._processor(images=image, return_tensors="np")["pixel_values"])
        except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
            width, height = image.size
            raise ImageError(
                f"the image processor of {self._source} cannot take an image of {width} x {height}: {one_line(error)}; "
                "resize the image"
            ) from error
        return np.ascontiguousarray(values, dtype=np.float32)

    def picture(self, image: Image.Image) -> Image.Image:
        """What the vision tower sees of an RGB image: resized and cropped, not normalised."""
        output = self._processor(images=image, return_tensors="np", do_rescale=False, do_normalize=False)
        values = np.asarray(output["pixel_values"])[0].transpose(1, 2, 0)
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def open_image_processor(folder: Path) -> ImageProcessor:
    """The image processor of a checkpoint or bundle.

    As in transformers, the ``image_processor`` part of processor_config.json goes before preprocessor_config.json.

    Raises:
        CheckpointError: no settings, settings that are not valid, or a processor type without a torch-free form.
    """
    settings, source = _read_settings(folder)
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if not isinstance(kind, str):
        raise CheckpointError(f"{source} does not name its image_processor_type; use a checkpoint with a complete one")
    base = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if base not in PIL_PROCESSORS:
        known = ", ".join(PIL_PROCESSORS)
        raise CheckpointError(f"{source} asks for image processor {kind}, which is not supported; supported: {known}")

    import transformers

    processor_class = getattr(transformers, PIL_PROCESSORS[base])
    try:
        processor = ImageProcessor(processor_class.from_dict(settings), source)
        with np.errstate(all="ignore"):  # what it computes is judged below
            values = processor.pixel_values(Image.new("RGB", (8, 6)))
    except Exception as error:  # transformers raises many kinds of errors on wrong settings
        raise CheckpointError(
            f"{source} has settings that do not work ({one_line(error)}); restore the original file"
        ) from error
    if values.ndim != 4 or values.shape[:2] != (1, 3) or values.size == 0 or not np.isfinite(values).all():
        raise CheckpointError(f"{source} makes unusable pixel values of shape {list(values.shape)}; restore the original file")
    return processor


def _read_settings(folder: Path) -> tuple[dict[str, Any], Path]:
    nested_file = folder / _PROCESSOR_FILE
    if nested_file.is_file():
        nested = read_json(nested_file).get("image_processor")
        if isinstance(nested, dict):
            return nested, nested_file
    plain_file = folder / _PREPROCESSOR_FILE
    if plain_file.is_file():
        return read_json(plain_file), plain_file
    raise CheckpointError(
        f"{folder} has neither {_PREPROCESSOR_FILE} nor an image_processor in {_PROCESSOR_FILE}; copy it from the model"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: unreadable, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({one_line(error)}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, not an object; download it again")
    return content


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks, cut where it goes on and on."""
    return " ".join(str(error).split())[:200] or type(error).__name__
