"""The skipping of tests where there is no Triton."""

from __future__ import annotations

from pathlib import Path

import pytest

from sts_export.testing.triton.home import HOME, missing

needs_triton = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="session")
def triton_home() -> Path:
    """The folder that scripts/triton_server/fetch made."""
    if reason := missing():
        pytest.skip(reason)
    return HOME
