"""What a server's operator allows to be done for a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sts_export.errors import RequestError
from sts_export.serving.pictures.hosts import check_hosts


@dataclass(frozen=True)
class PictureRules:
    """Where pictures may come from, and how large and slow they may be.  Pictures in data URLs are always taken.

    Args:
        hosts: http and https URLs are fetched from these only (:func:`~sts_export.serving.pictures.hosts.check_hosts`), and
            from public addresses only.  Empty: nothing is fetched.
        folder: file URLs are read only if the file is inside.  None: no file is read.
        most_bytes: size of a picture's file.
        seconds: for a whole fetch, from the start of the connection to the last byte.  The time that the system's resolver
            takes for the name counts, too, but is not cut short.

    Raises:
        RequestError: a host is malformed, the folder is none, or a limit is not positive.
    """

    hosts: tuple[str, ...] = ()
    folder: Path | None = None
    most_bytes: int = 20 << 20
    seconds: float = 10.0

    def __post_init__(self) -> None:
        check_hosts(self.hosts)
        if self.folder is not None and not self.folder.is_dir():
            raise RequestError(f"{str(self.folder)!r} is no folder of pictures; give one that exists")
        if self.most_bytes < 1:
            raise RequestError(f"{self.most_bytes} bytes are too few for a picture; give 1 or more")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise RequestError(f"{self.seconds} s are no time to fetch a picture in; give a number above 0")

    def allow(self, host: str, port: int) -> bool:
        """Whether pictures may be fetched from a host (in the spelling of ``host_and_port``)."""
        return any(allowed.allows(host, port) for allowed in check_hosts(self.hosts))
