"""Image → pixel values, by the checkpoint's own image processor settings and transformers' PIL processors (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sts_export.checkpoints.checkpoint import image_processor_kind, image_processor_settings
from sts_export.errors import CheckpointError, ImageError
from sts_export.torch_advice import hide_torch_advice

hide_torch_advice()


class ImageProcessor:
    """Resizes, crops, cuts and normalises one image.

    Args:
        processor: a PIL image processor of transformers.
        source: where its settings came from, for messages.
    """

    def __init__(self, processor: Any, source: Path) -> None:
        self._processor = processor
        self._source = source

    def __call__(self, image: Image.Image) -> dict[str, NDArray[Any]]:
        """RGB image → the processor's outputs by name; ``pixel_values`` is float32.

        Raises:
            ImageError: the processor cannot take this image.
        """
        try:
            # uint8 [3, 1, 1] or [3, 3, 3] leaves no doubt here: transformers takes PIL images as height x width x channel.
            outputs = self._processor(images=image, return_tensors="np")
        except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
            width, height = image.size
            raise ImageError(
                f"the image processor of {self._source} cannot take an image of {width} x {height}: {one_line(error)}; "
                "resize the image"
            ) from error
        arrays = {name: np.asarray(value) for name, value in outputs.items()}
        return {**arrays, "pixel_values": np.ascontiguousarray(arrays["pixel_values"], dtype=np.float32)}

    def pictures(self, image: Image.Image) -> list[Image.Image]:
        """What the vision tower sees of an RGB image, crop by crop: resized and cropped, not normalised."""
        output = self._processor(images=image, return_tensors="np", do_rescale=False, do_normalize=False)
        values = np.asarray(output["pixel_values"])
        crops = values.reshape(-1, *values.shape[-3:]).transpose(0, 2, 3, 1)
        return [Image.fromarray(np.clip(crop, 0, 255).astype(np.uint8)) for crop in crops]

    def resized_and_cut(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and height that a picture of that width and height is resized to, and those of the cut out of its middle.

        Source: transformers ``image_processing_backends.py`` (PilBackend.resize), of processors that make one crop.
        """
        own = self._processor
        resized = self._resized(size) if own.do_resize else size
        return resized, (own.crop_size.width, own.crop_size.height) if own.do_center_crop else resized

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
        from transformers.image_utils import get_image_size_for_max_height_width

        wanted, width, height = self._processor.size, *size
        if wanted.shortest_edge and wanted.longest_edge:
            high, wide = get_size_with_aspect_ratio((height, width), wanted.shortest_edge, wanted.longest_edge)
        elif wanted.shortest_edge:
            nothing = np.broadcast_to(np.uint8(0), (3, height, width))  # only its shape is read
            high, wide = get_resize_output_image_size(
                nothing, wanted.shortest_edge, default_to_square=False, input_data_format="channels_first"
            )
        elif wanted.max_height and wanted.max_width:
            high, wide = get_image_size_for_max_height_width((height, width), wanted.max_height, wanted.max_width)
        else:
            high, wide = wanted.height, wanted.width
        return int(wide), int(high)

    def check_tilings(self, resolutions: Sequence[tuple[int, int]]) -> None:
        """A processor that tiles pictures must choose among the model's resolutions, in its order, which decides ties.

        Args:
            resolutions: (height, width) in pixels.

        Raises:
            CheckpointError: it has others.
        """
        own = getattr(self._processor, "image_grid_pinpoints", None)
        wanted = [list(resolution) for resolution in resolutions]
        if own is None or [list(pair) for pair in own] != wanted:
            raise CheckpointError(
                f"{self._source} has image_grid_pinpoints {own}, the model's config.json {wanted}; "
                "use the processor files of this model"
            )

    def expect(self, name: str, shape: tuple[int | None, ...]) -> None:
        """Try the processor out.

        Raises:
            CheckpointError: it fails, or makes something else than finite numbers of this shape (None is any size).
        """
        try:
            with np.errstate(all="ignore"):  # what it computes is judged below
                values = self(Image.new("RGB", (8, 6)))[name]
        except Exception as error:  # transformers raises many kinds of errors on wrong settings
            raise CheckpointError(
                f"{self._source} has settings that do not work ({one_line(error)}); restore the original file"
            ) from error
        fits = len(values.shape) == len(shape) and all(
            want in (None, have) for have, want in zip(values.shape, shape, strict=False)
        )
        if not fits or values.size == 0 or not np.isfinite(values).all():
            raise CheckpointError(
                f"{self._source} makes unusable {name} of shape {list(values.shape)}; restore the original file"
            )


def open_image_processor(folder: Path, kinds: Mapping[str, str], settings: Mapping[str, Any] | None = None) -> ImageProcessor:
    """The image processor of a checkpoint or bundle.

    Args:
        kinds: processor types as checkpoints name them -> transformers' class that needs neither torch nor torchvision.
        settings: to use in place of the folder's own.

    Raises:
        CheckpointError: no settings, settings that are not valid, or a processor type without a torch-free form.
    """
    own, source = image_processor_settings(folder)
    settings = own if settings is None else settings
    base = image_processor_kind(settings, source)
    if base not in kinds:
        known = ", ".join(kinds)
        raise CheckpointError(f"{source} asks for image processor {base}, which is not supported; supported: {known}")

    import transformers

    try:
        return ImageProcessor(getattr(transformers, kinds[base]).from_dict(dict(settings)), source)
    except Exception as error:  # transformers raises many kinds of errors on wrong settings
        raise CheckpointError(
            f"{source} has settings that do not work ({one_line(error)}); restore the original file"
        ) from error


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks, cut where it goes on and on."""
    return " ".join(str(error).split())[:200] or type(error).__name__
