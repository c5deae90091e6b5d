"""Bring a repository's configuration and weights into the cache, and nothing else.

What is needed is what transformers would load: of a model one weight file, or those that its index names; of an adapter its
own two files.  Small files come first, because they tell whether the large ones are of any use.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sts_export.checkpoints.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    SINGLE,
    first_weights,
    is_companion,
    read_json,
)
from sts_export.checkpoints.kinds import check_adapter_files, check_kind
from sts_export.errors import CheckpointError
from sts_export.hub.blobs import check_room, fetch
from sts_export.hub.failures import AGAIN, explained, failures, first_line, is_unreachable, not_a_hub
from sts_export.hub.repository import Listing, RemoteFile, Repository

_CONFIG = "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def download(repository: Repository) -> Path:
    """The folder of the repository's snapshot, complete; see :func:`sts_export.hub.locate_model` for what it raises."""
    expected = failures()
    with _quiet_library():
        try:
            listing = _list_files(repository)
        except expected as error:
            if not is_unreachable(error):
                raise explained(error, repository) from None
            return _cached_snapshot(repository, error)
        try:
            return _complete_snapshot(repository, listing)
        except expected as error:
            raise explained(error, repository) from None


@contextmanager
def _quiet_library() -> Iterator[None]:
    """No log lines of huggingface_hub: what went wrong is said once, in one line, by the error."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _list_files(repository: Repository) -> Listing:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    try:
        info = HfApi(endpoint=repository.endpoint).model_info(
            repository.hub_id,
            revision=repository.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        files = {
            file.rfilename: RemoteFile(file.lfs.sha256, file.lfs.size)
            if file.lfs
            else RemoteFile(file.blob_id or "", file.size)
            for file in info.siblings or []
        }
        if not _COMMIT.fullmatch(info.sha or ""):
            raise KeyError("sha")
        return Listing(str(info.sha), files)
    except HFValidationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise not_a_hub(repository) from None


def _complete_snapshot(repository: Repository, listing: Listing) -> Path:
    """Fetch what the cache lacks: the small files first, because they tell whether the large ones are of any use."""
    weights: list[str] | None = None
    if ADAPTER_CONFIG in listing.files:
        weights = _adapter_names(repository, listing)
        small = [ADAPTER_CONFIG, *(name for name in listing.files if is_companion(name) and name != _CONFIG)]
    else:
        index = _check_model(repository, listing)
        small = [*filter(is_companion, listing.files), *([index] if index else [])]
    if not repository.ref.exists():  # offline, an interrupted download can then say what it lacks
        _write_ref(repository, listing)
    folder = repository.snapshot(listing.commit)
    fetch(repository, listing, small)
    if weights is None:
        weights = _weight_names(folder, listing.files.__contains__)
    lost = sorted(set(weights) - listing.files.keys())
    if lost:
        raise CheckpointError(
            f"{repository.label} lacks {len(lost)} of {len(weights)} weight files that its index names (first: {lost[0]}): "
            "give another revision or repository"
        )
    check_room(repository, listing, weights)
    fetch(repository, listing, weights)
    _write_ref(repository, listing)
    return folder


def _check_model(repository: Repository, listing: Listing) -> str | None:
    """Refuse what cannot be exported by config.json and file names; returns the weight index, if that is what counts."""
    if _CONFIG not in listing.files:
        raise CheckpointError(f"{repository.label} has no {_CONFIG}: give a repository that from_pretrained can load")
    fetch(repository, listing, [_CONFIG])
    config = read_json(repository.snapshot(listing.commit) / _CONFIG)
    check_kind(config, listing.files, repository.label)
    from sts_export.families import family_of

    family_of(config)
    first = first_weights(config, listing.files.__contains__)
    if first is not None:
        return first if first.endswith(".json") else None
    if any(name.endswith(_PICKLES) for name in listing.files):
        raise CheckpointError(
            f"{repository.label} has pickle weights only, which are never loaded: "
            "give a revision or repository with safetensors, or convert them to safetensors first"
        )
    raise CheckpointError(f"{repository.label} has no {SINGLE} and no {INDEX}: give a repository with the model's weights")


def _adapter_names(repository: Repository, listing: Listing) -> list[str]:
    """The weight file of an adapter.  Its base, which it names itself, is another repository.

    Raises:
        CheckpointError: no adapter in safetensors, weights beside it that are no part of it, or a whole model, too.
            transformers then merges the adapter into the named base where it is given the repository's id, but into that
            model where it is given a folder with the same files.
    """
    own = next((name for name in (SINGLE, INDEX) if name in listing.files), None)
    if own is not None:
        raise CheckpointError(
            f"{repository.label} holds both an adapter ({ADAPTER_CONFIG}) and a whole model ({own}): "
            "download the one you mean into a folder and give that"
        )
    check_adapter_files(listing.files, repository.label)
    if ADAPTER_WEIGHTS not in listing.files:
        raise CheckpointError(
            f"{repository.label} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}: give an adapter saved as safetensors"
        )
    return [ADAPTER_WEIGHTS]


def _weight_names(folder: Path, has: Callable[[str], bool]) -> list[str]:
    """The weight files of a snapshot whose small files are there."""
    first = first_weights(read_json(folder / _CONFIG), has) or SINGLE
    if not first.endswith(".json") or not (folder / first).is_file():
        return [first]
    weight_map = read_json(folder / first).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / first} has no weight_map: give another revision or repository")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / first} names {name!r}, which is no safetensors file beside it: give another repository"
            )
    return names


def _write_ref(repository: Repository, listing: Listing) -> None:
    """Which commit a branch or tag is at; moved by complete snapshots only, so that offline the old one goes on working."""
    if repository.revision == listing.commit:
        return
    if not repository.ref.is_file() or repository.ref.read_text() != listing.commit:
        repository.ref.parent.mkdir(parents=True, exist_ok=True)
        repository.ref.write_text(listing.commit)


def _cached_snapshot(repository: Repository, error: Exception) -> Path:
    """What the cache has, if that is a whole checkpoint."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    folder = repository.snapshot(_cached_commit(repository))
    if (folder / ADAPTER_CONFIG).is_file():
        known, weights = True, [ADAPTER_WEIGHTS]
    else:
        known = (folder / _CONFIG).is_file()
        weights = _weight_names(folder, lambda name: (folder / name).is_file()) if known else []
    missing = [name for name in weights if not (folder / name).is_file()]
    if known and not missing:
        return folder
    if isinstance(error, HfHubHTTPError):
        raise explained(error, repository) from None
    offline = isinstance(error, OfflineModeIsEnabled)
    reason = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({first_line(error)})"
    if not known:
        raise CheckpointError(f"{repository.label} is not in the local cache and {reason}: go online or give a folder")
    raise CheckpointError(
        f"{repository.label} is incomplete in the local cache ({len(missing)} of {len(weights)} weight files missing, "
        f"first: {missing[0]}) and {reason}: go online and {AGAIN}"
    )


def _cached_commit(repository: Repository) -> str:
    """The commit that the revision was at when last seen; without one, a name that no snapshot has."""
    if _COMMIT.fullmatch(repository.revision):
        return repository.revision
    commit = repository.ref.read_text().strip() if repository.ref.is_file() else ""
    return commit if _COMMIT.fullmatch(commit) else "unknown"
