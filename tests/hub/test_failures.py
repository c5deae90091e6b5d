"""Offline, and every refusal of a hub, in one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sts_export.errors import CheckpointError, StsExportError
from tests.hub.fake_hub import FakeHub
from tests.hub.helpers import (
    FIRST,
    SECOND,
    blob,
    failure,
    locate,
)

# Without a hub


def test_offline_with_everything_in_the_cache(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    folder = locate(hub, tmp_path)
    hub.requests.clear()
    offline()
    assert locate(hub, tmp_path) == folder
    assert not hub.requests


def test_offline_with_nothing(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    offline()
    message = failure(hub, tmp_path, CheckpointError)
    assert message == "org/name is not in the local cache and HF_HUB_OFFLINE is set: go online or give a folder"
    assert not list(tmp_path.iterdir())


def test_offline_after_an_interrupted_download(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    hub.faults.cut, hub.faults.cut_error = {SECOND: 120_000}, "down"
    failure(hub, tmp_path, StsExportError)
    offline()
    message = failure(hub, tmp_path, CheckpointError)
    assert f"org/name is incomplete in the local cache (1 of 2 weight files missing, first: {SECOND})" in message
    assert "HF_HUB_OFFLINE is set: go online and run the same command again" in message


def test_offline_with_a_blob_deleted(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    locate(hub, tmp_path)
    blob(hub, tmp_path, FIRST).unlink()
    offline()
    assert f"first: {FIRST}" in failure(hub, tmp_path, CheckpointError)


def test_no_network(hub: FakeHub, tmp_path: Path) -> None:
    cache, empty = tmp_path / "cache", tmp_path / "empty"
    folder = locate(hub, cache)
    hub.close()
    assert locate(hub, cache) == folder
    message = failure(hub, empty, CheckpointError)
    assert "org/name is not in the local cache and the hub cannot be reached (" in message
    blob(hub, cache, SECOND).unlink()
    message = failure(hub, cache, CheckpointError)
    assert "incomplete in the local cache (1 of 2" in message and "the hub cannot be reached (" in message


@pytest.mark.parametrize("fault", ["rate limit", "down"])
def test_a_hub_out_of_order_is_no_reason_not_to_use_the_cache(hub: FakeHub, tmp_path: Path, fault: str) -> None:
    folder = locate(hub, tmp_path)
    hub.faults.info = fault
    assert locate(hub, tmp_path) == folder


# Refusals of the hub

REFUSALS: dict[str, tuple[type[StsExportError], str]] = {
    "gated": (
        CheckpointError,
        "org/name is gated: accept its licence on its page on the hub, then run `hf auth login`",
    ),
    "missing": (
        CheckpointError,
        "org/name is no folder here and not on the hub (or is private): check the name, or run `hf auth",
    ),
    "bad token": (
        CheckpointError,
        "the hub does not accept your access token (401): run `hf auth login` again, or unset HF_TOKEN",
    ),
    "forbidden": (CheckpointError, "the hub refuses access to org/name (403): use a token that may read it"),
    "rate limit": (
        StsExportError,
        "the hub is limiting your requests (429): wait 7 seconds or log in with `hf auth login`, then run",
    ),
    "down": (StsExportError, "the hub failed to deliver org/name (503): wait some minutes, then run the same command again"),
}


@pytest.mark.parametrize("where", ["info", "resolve"])
@pytest.mark.parametrize("fault", REFUSALS)
def test_refusals(hub: FakeHub, tmp_path: Path, fault: str, where: str) -> None:
    setattr(hub.faults, where, fault)
    kind, expected = REFUSALS[fault]
    assert expected in failure(hub, tmp_path, kind)
    assert not hub.gets(FIRST)


def test_refusals_of_the_storage_host(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.stored = "forbidden"
    assert "(403)" in failure(hub, tmp_path, CheckpointError)


def test_an_unknown_repository(hub: FakeHub, tmp_path: Path) -> None:
    assert "org/other is no folder here and not on the hub" in failure(hub, tmp_path, CheckpointError, "org/other")


def test_an_unknown_revision(hub: FakeHub, tmp_path: Path) -> None:
    message = failure(hub, tmp_path, CheckpointError, "org/name@v9")
    assert message == "org/name has no revision 'v9': give a branch, tag or commit that it has"


def test_a_mirror_without_the_hubs_headers(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.anonymous = True
    message = failure(hub, tmp_path, CheckpointError)
    assert f"what answers at {hub.endpoint} is not a Hugging Face hub" in message


def test_something_else_than_a_hub_answers(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.not_json = True
    message = failure(hub, tmp_path, CheckpointError)
    assert f"what answers at {hub.endpoint} is not a Hugging Face hub" in message
