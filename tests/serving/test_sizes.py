"""As many slots as fit into the memory that the operator gives."""

from __future__ import annotations

import pytest

from sts_export.errors import RequestError
from sts_export.serving.sizes import slots_within
from tests.support.mixed_requests import Opened


@pytest.mark.parametrize("name", ["llava", "qwen-reindex"])
def test_as_many_as_fit_and_no_more(opened: Opened, name: str) -> None:
    """By the bytes that the engine allocates."""
    vlm = opened(name)
    caches = vlm._backend.new_caches(1)
    one = sum(caches.bytes_of(part.name) for part in vlm.manifest.pruning.parts)
    for slots in (1, 2, 7):
        assert slots_within(vlm.manifest, slots * one) == slots == slots_within(vlm.manifest, (slots + 1) * one - 1)
    with pytest.raises(RequestError, match="--memory"):
        slots_within(vlm.manifest, one - 1)
    assert slots_within(vlm.manifest, 1 << 50) == slots_within(vlm.manifest, 1 << 51)
