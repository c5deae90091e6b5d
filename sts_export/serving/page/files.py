"""The page's own files, by name."""

from __future__ import annotations

from importlib.resources import files

# Every file that there is, and no other: a name is looked up here before anything is opened.
_MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "kept.js": "text/javascript; charset=utf-8",
    "pictures.js": "text/javascript; charset=utf-8",
    "table.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# What the page needs of a browser: own scripts and styles, pictures that a user gave it, and the server it came from.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_file(name: str) -> tuple[bytes, str] | None:
    """Bytes and media type of a file of the page; None where the page has no file of that name.

    ``index.html`` stands at ``/`` and asks for all others at ``page/``, for ``page/info`` and for ``v1/chat/completions``.
    """
    media_type = _MEDIA_TYPES.get(name)
    return None if media_type is None else (files("sts_export.serving.page").joinpath(name).read_bytes(), media_type)
