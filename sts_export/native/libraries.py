"""Where the compiled libraries are looked for, and what speaks against a file.

The places, in this order: the file that was given, the bundle's folder, ``build/plugins`` of the repository, and the package
``sts_export_kernels`` (plugins/wheel), which is found and not imported.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sts_export.errors import RequestError
from sts_export.native.elf import MACHINES, exported_names, machine_of
from sts_export.paths import library_path

PACKAGE = "sts_export_kernels"
_LOG = logging.getLogger(__name__)  # Python prints warnings to stderr where nobody has said otherwise


@dataclass(frozen=True)
class Library:
    """A library of plugins/.

    Args:
        file_name: its own.
        title: as messages call it.
        exports: names by which it is told from others.
        how_to_get_it: what to do where it is missing or wrong.
    """

    file_name: str
    title: str
    exports: tuple[str, ...]
    how_to_get_it: str


def find_library(
    library: Library, given: str | Path | None, bundle: Path, unusable: Callable[[Path], str | None] = lambda file: None
) -> Path | None:
    """The file that was given, or else the first right one of those in the bundle, in the repository and in the package.

    Args:
        bundle: its folder.
        unusable: what else speaks against a file that is such a library for this machine, in words; None if nothing does.

    What is found and wrong is passed over, with one line of warning.

    Raises:
        RequestError: the given one is missing or wrong.
    """
    if given is not None:
        file = library_path(given)
        if not file.is_file():
            raise RequestError(f"there is no {library.title} {file}; {library.how_to_get_it}, or leave --plugins out")
        if (reason := what_is_wrong(library, file) or unusable(file)) is not None:
            raise RequestError(
                f"{file} cannot be used as {library.title}: {reason}; {library.how_to_get_it}, or leave --plugins out"
            )
        return file.resolve()
    for file in (folder / library.file_name for folder in (bundle, *own_folders())):
        if not _may_be_there(file):
            continue
        if (reason := what_is_wrong(library, file) or unusable(file)) is None:
            return file.resolve()
        _LOG.warning("note: %s is not used: %s", file, reason)
    return None


def _may_be_there(file: Path) -> bool:
    """Whether it is a file, or lies in a folder that may not be read, which ``what_is_wrong`` says."""
    try:
        return file.is_file()
    except OSError:
        return True


def own_folders() -> list[Path]:
    """Where builds of this project leave libraries: the repository's build folder, and the package that carries them."""
    found = [Path(__file__).resolve().parents[2] / "build" / "plugins"]
    spec = find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:  # a folder of that name that happens to lie on the path is no package
        found += map(Path, spec.submodule_search_locations or ())
    return found


def what_is_wrong(library: Library, file: Path) -> str | None:
    """Why a file is not this library for this machine, as far as that shows without loading it; None if it is."""
    try:
        machine = machine_of(file)
        exports = exported_names(file) if machine is not None else None
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    if machine is None:
        return f"it is no shared library for Linux on {' or '.join(MACHINES.values())}"
    if machine != this_machine():
        return f"it is for {machine}, and this machine is {this_machine()}"
    if exports is None:
        return "it is damaged: it ends before what its header promises"
    missing = [name for name in library.exports if name not in exports]
    return f"it is another library, without {missing[0]}" if missing else None


def this_machine() -> str:
    """As ``machine_of`` names it; with the system's name where libraries of Linux do not run."""
    names = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}
    machine = platform.machine().lower()
    name = names.get(machine, machine)
    return name if platform.system() == "Linux" else f"{name} with {platform.system()}"
