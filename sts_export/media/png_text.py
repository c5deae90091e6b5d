"""PNG files whose texts or colour profile are larger than PIL reads: the picture is there without them.

PIL refuses 1 MiB in one compressed chunk and 64 MiB of text in all, wherever in the file they stand.
Source: PIL ``PngImagePlugin.py`` (MAX_TEXT_CHUNK, MAX_TEXT_MEMORY); PNG specification, section 5 (chunks).
"""

from __future__ import annotations

_SIGNATURE = 8  # bytes before the first chunk
_AROUND = 12  # bytes of a chunk that are not its data: length, kind, CRC
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_XMP = b"iTXtXML:com.adobe.xmp\0\0"  # not packed; it may say how the camera was held


def is_too_much_text(error: BaseException) -> bool:
    """Whether PIL refused a text or a profile for its size and nothing else."""
    return isinstance(error, ValueError) and "MAX_TEXT_" in str(error)


def without_text(png: bytes) -> bytes:
    """The file without texts and colour profile, which no pixel depends on here; all else is as it was, damage included."""
    kept, start = [png[:_SIGNATURE]], _SIGNATURE
    while start < len(png):
        end = start + _AROUND + int.from_bytes(png[start : start + 4], "big")
        if end > len(png) or png[start + 4 : start + 8] not in _TEXTS or png.startswith(_XMP, start + 4):
            kept.append(png[start:end])
        start = end
    return b"".join(kept)
