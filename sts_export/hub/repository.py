"""A repository on the hub, and where huggingface_hub's cache keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Repository:
    """A repository on the hub at a revision, and the cache it goes to."""

    hub_id: str
    revision: str
    cache: Path
    endpoint: str | None

    @property
    def label(self) -> str:
        return self.hub_id if self.revision == "main" else f"{self.hub_id}@{self.revision}"

    @property
    def storage(self) -> Path:
        return self.cache / self._folder_name

    @property
    def locks(self) -> Path:
        return self.cache / ".locks" / self._folder_name

    @property
    def ref(self) -> Path:
        return self.storage / "refs" / self.revision

    @property
    def _folder_name(self) -> str:
        return f"models--{self.hub_id.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path:
        return self.storage / "snapshots" / commit

    def blob(self, etag: str) -> Path:
        return self.storage / "blobs" / etag


@dataclass(frozen=True)
class RemoteFile:
    """``etag`` names the file's blob in the cache; a size of None is one the hub did not tell."""

    etag: str
    size: int | None


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    commit: str
    files: dict[str, RemoteFile]
