"""The pictures of a folder."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sts_export.errors import ImageError
from sts_export.media.images import FORMATS, load_image
from sts_export.paths import user_path


def pictures_of(folder: str | Path) -> tuple[list[Path], list[str]]:
    """Pictures that lie in the folder itself, by name, and the names of what else lies there.  Each picture is decoded once.

    Raises:
        ImageError: no such folder, no picture in it, or a file that has a picture's suffix and cannot be read.
    """
    place = user_path(folder)
    if not place.is_dir():
        raise ImageError(f"{folder} is not a folder; give one that holds pictures")
    try:
        entries = sorted(place.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(f"folder {folder} cannot be read ({error.strerror}); give this user read access") from None
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    pictures = [entry for entry in entries if entry.suffix.lower() in suffixes and not entry.is_dir()]
    if not pictures:
        raise ImageError(f"folder {folder} holds no picture; give one with PNG, JPEG, WebP, BMP or TIFF files in it")
    for picture in pictures:
        load_image(picture)
    chosen = set(pictures)
    return pictures, [entry.name for entry in entries if entry not in chosen]
