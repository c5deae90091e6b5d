"""A folder that appears whole or not at all, and the removal of what killed processes left of theirs.

The folder is written under the name ``.NAME.partial-XXXXXXXX`` beside its place and renamed at the end.  Whoever writes it
holds a lock (flock) on it, which ends with the process, however that ends: an unlocked one is nobody's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sts_export.errors import OutputError

_OLD = "-old"


@contextmanager
def staging(output: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``output`` that becomes ``output`` at the end, or disappears.

    Args:
        replace: it takes the place of what is there by then.

    Raises:
        OutputError: the file system refuses, here or in the body, or another process has written ``output`` meanwhile.
    """
    target = Path(os.path.realpath(output))
    parent = target.parent
    new_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    folder, lock = None, None
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder, lock = _new_folder(target)
        except OSError as error:
            raise OutputError(f"cannot write to {parent}: {error.strerror}; choose another --output") from None
        try:
            yield folder
            if target.exists() and not replace:
                raise OutputError(f"{output} was written meanwhile; choose another --output or replace it with --force")
            _move(folder, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # two replaced the same folder at once
                raise OutputError(f"another process has just written {output}; export again if it was not the same") from None
            reason = error.strerror or error
            raise OutputError(f"cannot write {output}: {reason}; free space or choose another --output") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        with suppress(OSError):  # after a success they are not empty
            for new in new_parents:
                new.rmdir()


def remove_abandoned(output: Path) -> None:
    """Remove the staging folders of ``output`` that no living process holds.

    A process that was killed between the two renames of a replacement has left ``output`` under another name: it gets its
    own name back.
    """
    target = Path(os.path.realpath(output))
    name = re.compile(rf"\.{re.escape(target.name)}\.partial-\w{{8}}({_OLD})?")
    found: list[Path] = []
    with suppress(OSError):  # there is no such folder yet, or it is writable and not readable
        found = [entry for entry in target.parent.iterdir() if name.fullmatch(entry.name) and entry.is_dir()]
    for folder in found:
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue
        if lock is None:
            continue
        try:
            if folder.name.endswith(_OLD) and not target.exists():
                with suppress(OSError):  # another process was faster
                    os.replace(folder, target)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _new_folder(target: Path) -> tuple[Path, int | None]:
    """A new staging folder, and its lock where the file system has locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        with suppress(BlockingIOError, FileNotFoundError):
            lock = _lock(folder)
            if folder.exists():
                folder.chmod(0o755)
                return folder, lock
            if lock is not None:
                os.close(lock)
        # Another process took it for an abandoned one before it was locked.


def _lock(folder: Path) -> int | None:
    """A file descriptor that holds the folder until it is closed; None where the file system has no such locks.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: it is gone.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _move(folder: Path, target: Path) -> None:
    """Rename; what was at ``target`` is afterwards at ``folder``, to be deleted."""
    if not target.exists():
        os.replace(folder, target)
        return
    old, lock = folder.with_name(f"{folder.name}{_OLD}"), None
    with suppress(BlockingIOError, FileNotFoundError):
        lock = _lock(target)
    try:
        os.replace(target, old)
        try:
            os.replace(folder, target)
        except BaseException:
            os.replace(old, target)
            raise
        with suppress(OSError):
            os.replace(old, folder)
    finally:
        if lock is not None:
            os.close(lock)
