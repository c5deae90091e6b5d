"""PNG files with more text than PIL reads are whole pictures; what is truncated still is."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sts_export.errors import ImageError
from sts_export.media.images import image_pixels, load_image
from sts_export.media.png_text import without_text
from sts_export.testing.checkpoints import random_image

LONG = b"two million letters " * 100_000
PACKED = zlib.compress(LONG)
Chunk = tuple[bytes, bytes]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*before: Chunk, after: tuple[Chunk, ...] = ()) -> bytes:
    """A picture of 40 x 30 with chunks before and after its pixels."""
    buffer = io.BytesIO()
    random_image(3, (40, 30)).save(buffer, "PNG")
    data = buffer.getvalue()
    header, pixels, end = data[:33], data[33:-12], data[-12:]
    return b"".join([header, *(chunk(*one) for one in before), pixels, *(chunk(*one) for one in after), end])


TOO_LARGE: dict[str, tuple[Chunk, ...]] = {
    "zTXt": ((b"zTXt", b"Comment\0\0" + PACKED),),
    "iTXt": ((b"iTXt", b"Comment\0\1\0\0\0" + PACKED),),
    "iCCP": ((b"iCCP", b"profile\0\0" + PACKED),),
    "tEXt-in-all": ((b"tEXt", b"Comment\0" + LONG),) * 35,
    "zTXt-in-all": ((b"zTXt", b"Comment\0\0" + zlib.compress(LONG[: 1 << 20])),) * 65,
    "xmp-packed": ((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED),),
}


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", TOO_LARGE)
def test_too_much_text_does_not_hurt_the_picture(kind: str, where: str) -> None:
    data = png(*TOO_LARGE[kind]) if where == "before" else png(after=TOO_LARGE[kind])
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(io.BytesIO(data)) as image:  # what has to be got around
        image.load()
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(random_image(3, (40, 30))))


def test_the_picture_still_stands_upright() -> None:
    """By its EXIF block, and by XMP that is not packed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    for upright in ((b"eXIf", exif.tobytes()), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)):
        assert load_image(png(upright)).size == (30, 40)
        assert load_image(png(upright, *TOO_LARGE["zTXt"])).size == (30, 40)
        assert image_pixels(png(upright, *TOO_LARGE["zTXt"])) == 30 * 40


@pytest.mark.parametrize("cut", [100, 2000])
def test_truncated_is_truncated(cut: int) -> None:
    with pytest.raises(ImageError, match="truncated or damaged"):
        load_image(png(*TOO_LARGE["zTXt"])[:-cut])


def test_a_damaged_text_is_damage() -> None:
    data = bytearray(png((b"zTXt", b"Comment\0\0" + zlib.compress(b"short"))))
    data[33 + 4 + 4 + 10] ^= 255
    with pytest.raises(ImageError, match="damaged"):
        load_image(bytes(data))


def test_an_opened_picture_is_not_called_damaged() -> None:
    """It cannot be read a second time, but the message says what is the matter."""
    with Image.open(io.BytesIO(png(after=TOO_LARGE["zTXt"]))) as image, pytest.raises(ImageError) as caught:
        load_image(image)
    said = str(caught.value)
    assert "more text or a larger colour profile than PIL reads" in said and "damaged" not in said and "\n" not in said


KINDS = st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"gAMA", b"IDAT", b"prVt"])


@given(chunks=st.lists(st.tuples(KINDS, st.binary(max_size=30)), max_size=8), tail=st.binary(max_size=20))
def test_only_texts_are_left_out(chunks: list[Chunk], tail: bytes) -> None:
    """And XMP, which may hold the orientation, is no text; whatever follows the last whole chunk stays."""
    start = png()[:8]
    xmp = b"iTXtXML:com.adobe.xmp\0\0"
    kept = [one for one in chunks if one[0] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") or b"".join(one).startswith(xmp)]
    broken = struct.pack(">I", 1000) + b"tEXt" + tail
    data = start + b"".join(chunk(*one) for one in chunks) + broken
    assert without_text(data) == start + b"".join(chunk(*one) for one in kept) + broken
