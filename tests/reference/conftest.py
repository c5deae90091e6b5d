"""One random checkpoint of every kind, opened once for all tests of the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from sts_export.reference import ReferenceModel
from tests.reference.helpers import CHECKPOINTS

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ReferenceModel]:
    """The reference of a checkpoint of ``CHECKPOINTS`` by its name."""

    @cache
    def opened(name: str) -> ReferenceModel:
        write, spec = CHECKPOINTS[name]
        return ReferenceModel.open(write(tmp_path_factory.mktemp(name), spec))

    return opened
