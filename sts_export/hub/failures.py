"""What can go wrong with a hub, in one line each."""

from __future__ import annotations

import errno
from typing import cast

from sts_export.errors import CheckpointError, OutputError, StsExportError
from sts_export.hub.repository import Repository

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "run the same command again, it goes on where it stopped"


def failures() -> tuple[type[Exception], ...]:
    """What a request or a download may raise: errors of the HTTP library, of the system, and refused arguments."""
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP library is httpx or httpx2, by version of huggingface_hub; its base error and OSError are what this one is.
    return (*cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__), ValueError)


def not_a_hub(repository: Repository) -> CheckpointError:
    """Such as the login page of a network, or a mirror that lacks what a hub has."""
    from huggingface_hub import constants

    address = repository.endpoint or constants.ENDPOINT
    return CheckpointError(f"what answers at {address} is not a Hugging Face hub: check the network, HF_ENDPOINT and the proxy")


def is_unreachable(error: Exception) -> bool:
    """Nobody answered, or the hub is busy or out of order: a moment to live on the cache."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return not isinstance(error, ValueError)


def explained(error: Exception, repository: Repository) -> StsExportError:
    """The one line that says what happened and what to do."""
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # hf_hub_download hides what happened behind "not in the cache"
    label, hub_id = repository.label, repository.hub_id
    if isinstance(error, FileMetadataError):
        return not_a_hub(repository)
    if isinstance(error, GatedRepoError):
        return CheckpointError(f"{hub_id} is gated: accept its licence on its page on the hub, then run `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"{hub_id} is no folder here and not on the hub (or is private): check the name, or run `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{hub_id} has no revision {repository.revision!r}: give a branch, tag or commit that it has")
    if isinstance(error, HFValidationError):
        return CheckpointError(f"{hub_id!r} is neither a folder nor a valid hub id: check the name")
    if isinstance(error, HfHubHTTPError):
        return _explained_status(error.response.status_code, error.response.headers.get("Retry-After"), label)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return OutputError(f"the disk of {repository.cache} is full: free space or set HF_HOME to another disk, then {AGAIN}")
    if isinstance(error, OSError) and error.errno is not None:
        return OutputError(
            f"{label} cannot be kept in {repository.cache} ({error.strerror}): check its permissions or set HF_HOME"
        )
    if isinstance(error, ValueError):
        return CheckpointError(f"{label} cannot be downloaded ({first_line(error)}): try `hf download {hub_id}`")
    return StsExportError(f"the connection was lost while downloading {label} ({first_line(error)}): {AGAIN}")


def _explained_status(status: int, retry_after: str | None, label: str) -> StsExportError:
    if status == 401:
        return CheckpointError("the hub does not accept your access token (401): run `hf auth login` again, or unset HF_TOKEN")
    if status == 403:
        return CheckpointError(f"the hub refuses access to {label} (403): use a token that may read it, see `hf auth login`")
    if status == 429:
        wait = f"wait {retry_after} seconds" if (retry_after or "").isdigit() else "wait some minutes"
        return StsExportError(f"the hub is limiting your requests (429): {wait} or log in with `hf auth login`, then {AGAIN}")
    if status >= 500:
        return StsExportError(f"the hub failed to deliver {label} ({status}): wait some minutes, then {AGAIN}")
    return StsExportError(f"the hub refused a request for {label} ({status}): check the name, or update huggingface_hub")


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
