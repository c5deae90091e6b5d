"""What the container installs: wheels, and sources of the kernels."""

from __future__ import annotations

import re
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path, PurePosixPath

from sts_export.errors import RequestError
from sts_export.native.libraries import PACKAGE as KERNELS
from sts_export.paths import user_path

PACKAGE = "sts_export"
# What is safe in a shell and in a Containerfile, of what the specification of wheel file names has.
_FILE_NAME = re.compile(r"[A-Za-z0-9_.+-]+\.whl")
_SOURCES = ("plugins/CMakeLists.txt", "scripts/build_plugins")


def check_wheel(file: Path, package: str, needed: str) -> Path:
    """Its path.

    Args:
        package: whose it must be.
        needed: a file that it must hold.

    Raises:
        RequestError: it is no such wheel.
    """
    what = f"wheel of {package.replace('_', '-')}"
    path = user_path(file)
    if not path.is_file():
        raise RequestError(f"there is no {what} {path}; check the path, or make one with python -m build --wheel")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            facts = [name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            said = BytesParser().parsebytes(archive.read(facts[0]))["Name"] if facts else None
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError):
        raise RequestError(f"{path} is no wheel; give a {what}") from None
    if _FILE_NAME.fullmatch(path.name) is None or re.sub(r"[-_.]+", "_", str(said)).lower() != package:
        raise RequestError(f"{path} is no {what}; give one")
    if needed not in names:
        raise RequestError(f"{path} is too old: it has no {needed}; make a newer one with python -m build --wheel")
    return path


def check_kernels(given: Path) -> Path:
    """Path of a wheel of sts-export-kernels, or of a checkout of sts-export.

    Raises:
        RequestError: it is neither.
    """
    path = user_path(given)
    if path.is_dir():
        if missing := [name for name in _SOURCES if not (path / name).is_file()]:
            raise RequestError(f"{path} is no checkout of sts-export: it has no {missing[0]}; give one, or a wheel")
        return path
    return check_wheel(path, KERNELS, f"{KERNELS}/__init__.py")


def pack_sources(checkout: Path, archive: Path) -> None:
    """A gzipped tar file of what scripts/build_plugins compiles.

    Raises:
        OSError: the file system refuses.
    """

    def plain(item: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if "__pycache__" in PurePosixPath(item.name).parts:
            return None
        item.uid = item.gid = 0
        item.uname = item.gname = ""
        return item

    with tarfile.open(archive, "w:gz") as stream:
        for name in ("plugins", "scripts/build_plugins"):
            stream.add(checkout / name, name, filter=plain)
