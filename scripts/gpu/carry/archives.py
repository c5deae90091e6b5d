"""Archives that unpack by Python alone, and their parts."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Of onnxruntime-gpu, what a run has no use for: a library that duplicates the extension module, TensorRT's provider, tools.
_UNUSED = ("capi/libonnxruntime.so.", "capi/libonnxruntime_providers_tensorrt.so", "transformers/", "quantization/", "tools/")
_PRESET = 2  # of xz: as small as one can wait for


def needed(name: str) -> bool:
    """Whether a file of an onnxruntime-gpu wheel is brought."""
    folder, _, rest = name.partition("/")
    return folder != "onnxruntime" or not rest.startswith(_UNUSED)


def unzip(wheels: Sequence[Path], folder: Path, keep: Callable[[str], bool] = lambda name: True) -> None:
    """Install wheels of packages into a folder: one that goes on PYTHONPATH, without scripts.

    Raises:
        OSError: one cannot be read, or is no wheel.
    """
    for file in wheels:
        try:
            with zipfile.ZipFile(file) as wheel:
                wheel.extractall(folder, [name for name in wheel.namelist() if keep(name)])
        except zipfile.BadZipFile as error:
            raise OSError(f"{file} is no wheel, or damaged: {error}") from None


def tar_folders(file: Path, folders: Mapping[str, Path]) -> None:
    """A .tar.xz of folders, each under its name there; nobody's, of no date."""
    with lzma.open(file, "w", preset=_PRESET) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, folder in folders.items():
            tar.add(folder, name, filter=_anonymous)


def split(file: Path, most: int) -> list[Path]:
    """Cut into the fewest equal parts of at most so many bytes, FILE.1 and so on; the file itself goes."""
    data = file.read_bytes()
    count = -(-len(data) // most)
    size = -(-len(data) // count)
    parts = [file.with_name(f"{file.name}.{index + 1}") for index in range(count)]
    for index, part in enumerate(parts):
        part.write_bytes(data[index * size : (index + 1) * size])
    file.unlink()
    return parts


def sha256(*files: Path) -> str:
    """Of the files one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
