"""No stage 1: every visual token goes into the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sts_export.pruning.stage import Stage1


@dataclass(frozen=True)
class KeepAll(Stage1):
    """K = N, so that there is nothing to choose."""

    name: ClassVar[str] = "keep-all"
    summary: ClassVar[str] = "drops nothing: K = N"
    keeps_all: ClassVar[bool] = True


STAGE = KeepAll
