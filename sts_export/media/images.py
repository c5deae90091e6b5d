"""Read one image from wherever it comes, fully decoded, upright and in RGB, or say in one line why not."""

from __future__ import annotations

import io
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sts_export.errors import ImageError
from sts_export.media.png_text import is_too_much_text, without_text

ImageSource = str | Path | bytes | Image.Image
DEFAULT_MAX_PIXELS = 64_000_000
# Image processors resize by the short side: a 1 x 60000 strip would become 20 million columns before it is cropped.
MAX_ASPECT_RATIO = 200
# Only formats decoded by PIL itself: for EPS it would start Ghostscript on the user's file.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# Camera JPEGs in the multi-picture format carry previews after the photo: the first picture is the photo.
_FIRST_FRAME_IS_THE_IMAGE = frozenset({"MPO"})
_GREY16_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_ALPHA_MODES = frozenset({"LA", "PA", "RGBA"})
# PIL's own limit; the warning is raised where a process makes errors of warnings.
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_Found = TypeVar("_Found")


class _TooMuchTextError(ImageError):
    """The picture may be whole; what is around it is too large for PIL."""


def load_image(source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Load ``source`` as a new RGB image with its EXIF orientation applied; transparency becomes white.

    White is what transformers' image processors put behind transparent pixels.  16-bit grey is scaled to 8 bits.  Threads may
    load images at the same time: nothing of the process is changed, so what PIL warns of is up to the process's filters.

    Args:
        source: path of an image file, the bytes of one, or a PIL image (left as it is).
        max_pixels: largest width x height accepted, checked on the header before decoding.  PIL's own limit
            (twice ``PIL.Image.MAX_IMAGE_PIXELS``) still holds above it.

    Raises:
        ImageError: missing, unreadable, empty, truncated, animated, too large or otherwise not one usable image.
    """
    name = _describe(source)
    if isinstance(source, Image.Image):
        return _decode(source, name, max_pixels)
    try:
        with _open_stream(source, name) as stream:
            return _read(stream, name, max_pixels, _decode)
    except OSError as error:
        raise ImageError(f"cannot read {name}: {_reason(error)}; check the disk and the file's permissions") from error


def image_pixels(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> int:
    """Width x height by the header of an image file; nothing is decoded.

    Raises:
        ImageError: :func:`load_image` would refuse the header, too.
    """
    name = _describe(data)
    with _open_stream(data, name) as stream:
        return _read(stream, name, max_pixels, _checked_pixels)


def _describe(source: object) -> str:
    if isinstance(source, (str, Path)):
        return f"image {str(source)!r}"
    return "image"


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _open_stream(source: str | Path | bytes, name: str) -> IO[bytes]:
    """A seekable, non-empty byte stream of ``source``."""
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{name} is empty (0 bytes); send the bytes of a whole image file")
        return io.BytesIO(source)
    if not isinstance(source, (str, Path)):
        raise ImageError(f"an image is a path, bytes or a PIL image, not {type(source).__name__}; convert it to one of them")
    if isinstance(source, str) and "://" in source:
        raise ImageError(f"{name} is a URL; download it and give the local file")
    try:
        # Path("") is the current folder: an empty name is a mistake and not a folder.
        if not str(source):
            raise FileNotFoundError
        status = Path(source).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder; give one image file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name} is not a regular file; save it to a file first")
        if status.st_size == 0:
            raise ImageError(f"{name} is empty (0 bytes); copy or download it again")
        return Path(source).open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{name} does not exist; check the path") from error
    except PermissionError as error:
        raise ImageError(f"{name} cannot be read (permission denied); give this user read access") from error
    except ValueError as error:
        raise ImageError(f"{name} is not a valid path ({_reason(error)}); check the path") from error


def _read(stream: IO[bytes], name: str, max_pixels: int, use: Callable[[Image.Image, str, int], _Found]) -> _Found:
    """What ``use`` makes of the image."""
    try:
        with _open_image(stream, name, max_pixels) as image:
            return use(image, name, max_pixels)
    except _TooMuchTextError:
        stream.seek(0)
        slim = without_text(stream.read())
        with _open_image(io.BytesIO(slim), name, max_pixels) as image:
            return use(image, name, max_pixels)


def _open_image(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """Parse the header only."""
    try:
        return Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that can be read, or its header is damaged; give a PNG, JPEG, WebP, BMP or TIFF file"
        ) from error
    except _BOMBS as error:
        raise ImageError(f"{name} has far more than the {max_pixels} pixels accepted; make it smaller") from error
    except Exception as error:  # format readers raise almost anything on damaged headers
        _check_text(error, name)
        raise ImageError(f"{name} is damaged ({_reason(error)}); copy or download it again") from error


def _check_text(error: Exception, name: str) -> None:
    if is_too_much_text(error):
        raise _TooMuchTextError(
            f"{name} holds more text or a larger colour profile than PIL reads ({_reason(error)}); save it without them"
        ) from error


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Check the header, decode every pixel, turn upright, convert to RGB."""
    _check_size(image, name, max_pixels)
    _check_single_frame(image, name)
    try:
        image.load()
    except _BOMBS as error:
        raise ImageError(f"{name} has far more than the {max_pixels} pixels accepted; make it smaller") from error
    except Exception as error:  # decoders raise almost anything on damaged data
        _check_text(error, name)
        raise ImageError(f"{name} is truncated or damaged ({_reason(error)}); copy or download it again") from error
    _check_size(image, name, max_pixels)  # some decoders correct the header's size
    # 16-bit PNM files open as 32-bit grey; turning the image upright makes it forget its format.
    is_grey16 = image.mode in _GREY16_MODES or (image.mode == "I" and image.format == "PPM")
    return _to_rgb(_upright(image), name, is_grey16)


def _checked_pixels(image: Image.Image, name: str, max_pixels: int) -> int:
    _check_size(image, name, max_pixels)
    return image.width * image.height


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}); give an image with content")
    if width * height > max_pixels:
        raise ImageError(f"{name} has {width} x {height} pixels, more than the {max_pixels} accepted; make it smaller")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{name} is a strip of {width} x {height} pixels, over {MAX_ASPECT_RATIO} times longer than wide; crop it"
        )


def _check_single_frame(image: Image.Image, name: str) -> None:
    if image.format in _FIRST_FRAME_IS_THE_IMAGE:
        return
    try:
        # is_animated first: counting every frame of a long GIF means walking through the file.
        several = bool(getattr(image, "is_animated", False)) or int(getattr(image, "n_frames", 1)) > 1
    except Exception as error:  # the walk over the frames meets the damage first
        raise ImageError(f"{name} is truncated or damaged ({_reason(error)}); copy or download it again") from error
    if several:
        raise ImageError(f"{name} is animated or has several pages; give one frame as its own image")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about orientation; the pixels are fine
        return image


def _to_rgb(image: Image.Image, name: str, is_grey16: bool) -> Image.Image:
    """[W, H] in any mode → RGB, as transformers' image processors convert."""
    try:
        if is_grey16:
            rgb = _grey16_to_rgb(image)
        elif image.mode in ("I", "F"):
            # PIL would clip at 255, and nothing says which value is white.
            raise ImageError(f"{name} has 32-bit grey pixels of unknown range; save it with 8 bits per channel")
        elif image.mode in _ALPHA_MODES or image.info.get("transparency") is not None:
            rgba = image.convert("RGBA")
            rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
        else:
            rgb = image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{name} has colour mode {image.mode}, which has no RGB form; save it as RGB") from error
    # A leftover colour key would be applied a second time by whoever converts next.
    rgb.info.pop("transparency", None)
    return rgb


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
