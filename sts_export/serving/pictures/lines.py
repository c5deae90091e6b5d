"""What the error lines about URLs have in common."""

from __future__ import annotations

import re

from sts_export.errors import ImageError

MOST_SHOWN = 60  # characters of a URL
INSTEAD = "send data:image/png;base64,... with the bytes of the file"
_MIB = 1 << 20


def shown(url: str) -> str:
    """What a line may say of a URL: its beginning, on one line, without what is often secret: query, fragment and user."""
    head = re.split(r"[?#]", url, maxsplit=1)[0]
    _, user, rest = head.rpartition("@")
    return repr(("..." if user else "") + rest[:MOST_SHOWN])


def too_large(most_bytes: int) -> ImageError:
    size = f"{most_bytes} bytes" if most_bytes % _MIB else f"{most_bytes // _MIB} MiB"
    return ImageError(f"the picture is larger than {size}; send a smaller one")
