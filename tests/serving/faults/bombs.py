"""Small files that are large pictures, and requests with them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

from PIL import Image

from tests.serving.faults.answers import ASKED


def asks(*urls: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {**ASKED, "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": "What?"}]}]}


def data(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def black_png(width: int, height: int, *extra: bytes) -> bytes:
    """One bit a pixel, some thousands of which are a byte of the file."""
    row, packer = bytes(1 + (width + 7) // 8), zlib.compressobj(9)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def gif(frames: int) -> bytes:
    buffer = io.BytesIO()
    first, *others = [Image.new("L", (8, 8), number % 251) for number in range(frames)]
    first.save(buffer, "GIF", save_all=True, append_images=others)
    return buffer.getvalue()


def half_a_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((300, 300), 50).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]
