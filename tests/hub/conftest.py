"""The hub of one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants as hub_constants

from tests.hub.fake_hub import FakeHub
from tests.hub.helpers import (
    SHARDS,
    SIZE,
    content,
    repository,
)


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """No proxy, no token, not offline, whatever the environment says; the HTTP session may have seen it already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        yield
    huggingface_hub.close_session()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(repository()) as running:
        yield running


@pytest.fixture
def large(hub: FakeHub) -> int:
    """Makes both shards larger than what huggingface_hub writes at once; how many bytes it keeps of one cut at CUT."""
    for name in SHARDS:
        hub.files[name] = content(int(name[6:11]), SIZE)
    return hub_constants.DOWNLOAD_CHUNK_SIZE


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
