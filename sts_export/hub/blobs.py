"""Download files into the cache, going on where an earlier run stopped.

huggingface_hub 2.4 downloads to a file of random name that it deletes when the download fails, so 20 GB that stop at 19 start
over; here they stay in ``blobs/<etag>.incomplete`` and the next run goes on.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from sts_export.errors import OutputError, StsExportError
from sts_export.hub.failures import not_a_hub
from sts_export.hub.repository import Listing, RemoteFile, Repository

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_room(repository: Repository, listing: Listing, names: Iterable[str]) -> None:
    needed = sum(_remaining(repository, listing, name) for name in names)
    existing = next(folder for folder in (repository.storage, *repository.storage.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OutputError(
            f"no room for {repository.label}: {needed >> 20} MB to download, {free >> 20} MB free in {repository.cache}; "
            "free space or set HF_HOME to another disk"
        )


def _remaining(repository: Repository, listing: Listing, name: str) -> int:
    """Bytes still to download of a file."""
    file = listing.files[name]
    blob = repository.blob(file.etag)
    if file.size is None or _is_whole(repository.snapshot(listing.commit) / name, file) or _is_whole(blob, file):
        return 0
    return file.size - min(file.size, _size(_partial(blob)) or 0)


def _is_whole(path: Path, file: RemoteFile) -> bool:
    size = _size(path)
    return size is not None and file.size in (None, size)


def _size(path: Path) -> int | None:
    """Bytes of a file, None where there is none.  One call: another download may move the file after a first look."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def fetch(repository: Repository, listing: Listing, names: Iterable[str]) -> None:
    from huggingface_hub import hf_hub_download

    folder = repository.snapshot(listing.commit)
    for name in names:
        entry = folder / name
        was_there = os.path.lexists(entry)  # seen first: what another download enters from here on is whole
        if _is_whole(entry, listing.files[name]):
            continue
        if was_there:
            entry.unlink(missing_ok=True)  # cut short, or a link to a blob that is gone
        _fetch_blob(repository, listing, name)
        # With the blob in place this only enters it into the snapshot, in whatever way the file system allows.
        hf_hub_download(
            repository.hub_id,
            name,
            revision=listing.commit,
            cache_dir=repository.cache,
            endpoint=repository.endpoint,
        )


def _fetch_blob(repository: Repository, listing: Listing, name: str) -> None:
    """Download a file's content, going on from what an earlier run left."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # exported, but not in __all__

    url = hf_hub_url(repository.hub_id, name, revision=listing.commit, endpoint=repository.endpoint)
    metadata = get_hf_file_metadata(url, endpoint=repository.endpoint)
    if not metadata.etag or Path(metadata.etag).name != metadata.etag:
        raise not_a_hub(repository)
    file = RemoteFile(metadata.etag, listing.files[name].size if metadata.size is None else metadata.size)
    blob = repository.blob(file.etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    repository.locks.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(repository.locks / f"{file.etag}.lock"):  # huggingface_hub's own lock of this file
        if _is_whole(blob, file):
            return
        _append_missing(url, _partial(blob), file, name)
        _check_digest(_partial(blob), file, name)
        _partial(blob).replace(blob)


def _append_missing(url: str, partial: Path, file: RemoteFile, name: str) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported, but not in __all__

    # Plain HTTP even where the hub offers Xet, whose downloads cannot be resumed, and no compression, whose byte ranges
    # would count other bytes.  The hub redirects to a storage host: the HTTP library follows and leaves the token behind.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    with partial.open("ab") as stream:
        if file.size is not None and stream.tell() > file.size:
            stream.truncate(0)
            stream.seek(0)
        http_get(
            url,
            stream,
            resume_size=stream.tell(),
            headers=headers,
            expected_size=file.size,
            displayed_filename=name,
        )


def _check_digest(partial: Path, file: RemoteFile, name: str) -> None:
    """A part written by a run that crashed may hold anything; what has become a blob is never looked at again."""
    if not _SHA256.fullmatch(file.etag):  # small files are named by git's hash; their size was compared
        return
    digest = hashlib.sha256()
    with partial.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != file.etag:
        partial.unlink()
        raise StsExportError(f"{name} arrived damaged (its sha256 is not the hub's) and was deleted: run the same command")
