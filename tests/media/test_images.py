"""load_image: what it accepts, how it converts, and one line for everything it refuses."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sts_export.errors import ImageError
from sts_export.media.images import image_pixels, load_image


def picture(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refusal(source: Any, **options: Any) -> str:
    """The one-line message; no warning may escape on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            load_image(source, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "pil"])
def test_every_kind_of_source(tmp_path: Path, kind: str) -> None:
    original = picture()
    path = tmp_path / "picture.png"
    original.save(path)
    source: Any = {"str": str(path), "path": path, "bytes": path.read_bytes(), "pil": original}[kind]
    image = load_image(source)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(original))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_common_formats(format: str) -> None:
    image = load_image(encoded(picture(), format))
    assert image.mode == "RGB" and image.size == (40, 30)


def test_the_given_image_is_left_alone() -> None:
    original = picture().convert("RGBA")
    load_image(original)
    assert original.mode == "RGBA"
    assert load_image(picture()) is not None


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(format: str) -> None:
    original = Image.new("RGB", (40, 20), "black")
    original.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to show
    image = load_image(encoded(original, format, exif=exif))
    assert image.size == (20, 40)
    assert np.asarray(image)[:18].mean() > 240 and np.asarray(image)[22:].mean() < 15


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored() -> None:
    image = load_image(encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"))
    assert image.size == (40, 30)


def transparent_palette() -> Image.Image:
    image = picture().quantize(16)
    image.info["transparency"] = 3
    return image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_convert_as_transformers_does(mode: str) -> None:
    from transformers.image_transforms import convert_to_rgb

    source = picture().convert("RGBA")
    source.putalpha(Image.linear_gradient("L").resize(source.size))
    image = source.convert(mode) if mode not in ("YCbCr", "HSV", "P") else source.convert("RGB").convert(mode)
    np.testing.assert_array_equal(np.asarray(load_image(image)), convert_to_rgb(image, return_numpy=True))


def test_transparent_palette_and_colour_key_become_white() -> None:
    from transformers.image_transforms import convert_to_rgb

    data = encoded(transparent_palette())
    image = load_image(data)
    np.testing.assert_array_equal(np.asarray(image), convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True))
    data = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    image = load_image(data)
    assert np.asarray(image).min() == 255
    assert "transparency" not in image.info


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(format: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    image = load_image(encoded(Image.fromarray(ramp), format))
    np.testing.assert_array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_grey_is_refused(dtype: type) -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), dtype=dtype)), "TIFF")
    assert "8 bits" in refusal(data)


def test_mode_without_rgb_form() -> None:
    assert "save it as RGB" in refusal(Image.new("La", (4, 4)))


def test_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "no.png")
    assert "does not exist" in refusal("")
    (tmp_path / "file").write_bytes(b"x")
    assert "does not exist" in refusal(tmp_path / "file" / "no.png")


def test_impossible_paths() -> None:
    assert "not a valid path" in refusal("a\0b.png")
    assert "cannot read" in refusal("x" * 5000)
    assert "URL" in refusal("https://example.org/cat.jpg")


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


def test_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert "not a regular file" in refusal(pipe)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    picture().save(path)

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # chmod would not stop root
    assert "permission denied" in refusal(path)


def test_read_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad-disk.png"
    picture().save(path)

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", broken)
    assert "Input/output error" in refusal(path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    assert "empty" in refusal(path)
    assert "empty" in refusal(b"")


@pytest.mark.parametrize(
    "content", [b"hello, I am text\n" * 50, b"{}", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG"]
)
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    message = refusal(path)
    assert "not an image" in message and "notes.png" in message


@pytest.mark.parametrize("source", [None, 3, ["a.png"], np.zeros((4, 4, 3), np.uint8)])
def test_wrong_type(source: Any) -> None:
    assert "path, bytes or a PIL image" in refusal(source)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
def test_truncated(format: str, fraction: float) -> None:
    data = encoded(picture(200, 150), format)
    message = refusal(data[: int(len(data) * fraction)])
    assert "truncated" in message or "damaged" in message


def test_damaged_in_the_middle() -> None:
    data = bytearray(encoded(picture(200, 150)))
    data[2000:3000] = bytes(1000)
    assert "damaged" in refusal(bytes(data))


@pytest.mark.filterwarnings("ignore")  # of PIL about what is damaged
def test_random_damage_never_escapes_the_family() -> None:
    random = np.random.default_rng(1)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        original = np.frombuffer(encoded(picture(), format), np.uint8)
        for _ in range(60):
            data = original.copy()
            where = random.integers(0, len(data), 6)
            data[where] = random.integers(0, 256, 6)
            try:
                assert load_image(data.tobytes()).mode == "RGB"
            except ImageError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames(format: str) -> None:
    other = picture().transpose(Image.Transpose.ROTATE_180)
    assert "one frame" in refusal(encoded(picture(), format, save_all=True, append_images=[other]))


def test_multi_picture_jpeg_is_its_first_picture() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    assert np.asarray(load_image(data))[..., 0].min() > 240


def test_too_many_pixels_is_seen_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_decoding(*_: Any) -> Any:
        raise AssertionError("decoded")

    data = encoded(picture())
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", no_decoding)
    assert "40 x 30 pixels, more than the 1199 accepted" in refusal(data, max_pixels=1199)


@pytest.mark.parametrize("side", [9_000, 11_000, 20_000, 60_000])  # below and above each limit of PIL itself
def test_decompression_bomb(side: int) -> None:
    data = encoded(picture())
    bomb = data[:16] + side.to_bytes(4, "big") * 2 + data[24:]
    import zlib

    bomb = bomb[:29] + zlib.crc32(bomb[12:29]).to_bytes(4, "big") + bomb[33:]
    limit = Image.MAX_IMAGE_PIXELS
    filters = list(warnings.filters)
    assert "smaller" in refusal(bomb)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


def test_images_do_not_wait_for_each_other() -> None:
    """While one is decoded others are loaded, and the process's filters of warnings are as they were."""
    begun, over, filters = threading.Event(), threading.Event(), warnings.filters
    slow = picture()
    changed = []

    def load() -> None:
        changed.append(warnings.filters is not filters)
        begun.set()
        assert over.wait(60)

    slow.load = load  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(load_image, slow)
        try:
            assert begun.wait(60)
            quick = threading.Thread(target=load_image, args=(encoded(picture()),), daemon=True)
            quick.start()
            quick.join(60)
            assert not quick.is_alive()
        finally:
            over.set()
        assert loaded.result(60).size == (40, 30)
    assert not any(changed)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_pixels_by_the_header(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    def decoded(*_: Any) -> None:
        raise AssertionError("it was decoded")

    data = encoded(picture(), format)
    monkeypatch.setattr("sts_export.media.images._decode", decoded)
    assert image_pixels(data) == 40 * 30
    with pytest.raises(ImageError, match="more than the 1199 accepted"):
        image_pixels(data, max_pixels=1199)
    with pytest.raises(ImageError, match="not an image"):
        image_pixels(b"no picture")


def test_no_pixels_and_strips() -> None:
    assert "no pixels" in refusal(Image.new("RGB", (0, 5)))
    assert "strip" in refusal(Image.new("RGB", (1, 201)))
    assert "strip" in refusal(Image.new("RGB", (60_000, 1)))
    assert load_image(Image.new("RGB", (1, 200))).size == (1, 200)
    assert load_image(Image.new("RGB", (1, 1))).size == (1, 1)


def test_closed_image(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture().save(path)
    image = Image.open(path)
    image.close()
    assert "damaged" in refusal(image)
