"""A Triton server with the demo model on a repository of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sts_export import Pipeline
from sts_export.demo import PICTURES_DIR
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.triton.home import missing
from sts_export.testing.triton.server import Triton, triton_server
from tests.support.triton.repositories import Repository, write

Written = Callable[..., Repository]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the demo model; no test changes it."""
    if reason := missing():
        pytest.skip(reason)
    return export(ExportRequest("demo", tmp_path_factory.mktemp("demo") / "bundle", budget="64")).folder


@pytest.fixture(scope="session")
def pipeline(demo: Path) -> Iterator[Pipeline]:
    """What answers have to be equal to."""
    with Pipeline(demo, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def scenes() -> list[bytes]:
    """Files of the demo's pictures."""
    return [file.read_bytes() for file in sorted(PICTURES_DIR.glob("*.png"))]


@pytest.fixture
def written(demo: Path, tmp_path: Path) -> Written:
    """A repository of a test's own, with the settings that it gives."""
    return lambda **settings: write(demo, tmp_path / "models", **settings)


@pytest.fixture(scope="session")
def triton(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server that tests share: no answer is changed by another one."""
    repository = write(demo, tmp_path_factory.mktemp("shared") / "models", slots=4)
    with triton_server(repository.folder) as server:
        yield server
