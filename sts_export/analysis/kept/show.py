"""Ask, draw and write one file: a picture, or a page if the name ends in .html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sts_export.analysis.kept.answers import Question, answer
from sts_export.analysis.kept.page import make_page
from sts_export.analysis.kept.panels import Panel
from sts_export.analysis.kept.sheet import draw_sheet
from sts_export.errors import OutputError
from sts_export.files import new_file
from sts_export.paths import user_path

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_PAGES = (".html", ".htm")
_LONGEST = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}  # pixels of a side that these forms can hold


def save_kept(question: Question, output: str) -> list[Panel]:
    """Answer and write what was kept.

    Raises:
        OutputError: the file cannot be written there, or not in that form.
        RequestError, ImageError, BackendError: as :func:`answer`.
    """
    target = check_output(output, question.images)
    panels = answer(question)
    write(panels, question.prompt, target, output)
    return panels


def check_output(output: str, images: Sequence[str]) -> Path:
    """Before anything runs.

    Raises:
        OutputError: the name says no form, the folder is missing, or it is one of the pictures that are shown.
    """
    target = user_path(output)
    if target.suffix.lower() not in (*_PICTURES, *_PAGES):
        raise OutputError(f"cannot write a picture to {output}: use a name that ends in .png, .jpg, .webp or .html")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {output}: {target.parent} is not a folder; choose another --output")
    if target.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder; choose another --output")
    if target.resolve() in [user_path(image).resolve() for image in images]:
        raise OutputError(f"{output} is the picture itself; choose another --output")
    return target


def write(panels: Sequence[Panel], prompt: str, target: Path, output: str) -> None:
    """One whole file, or none.

    Raises:
        OutputError: the file system refuses, or the picture has more pixels than the form can hold.
    """
    suffix = target.suffix.lower()
    try:
        if suffix in _PAGES:
            page = make_page(panels, prompt).encode("utf-8", "backslashreplace")
            with new_file(target) as stream:
                stream.write(page)
            return
        sheet = draw_sheet(panels, prompt)
        if max(sheet.size) > _LONGEST.get(suffix, max(sheet.size)):
            raise OutputError(f"{output} would have {sheet.width} x {sheet.height} pixels, more than {suffix} holds: use .html")
        with new_file(target) as stream:
            sheet.save(stream, Image.registered_extensions()[suffix])
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}; choose another --output") from None
