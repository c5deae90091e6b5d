"""What a pruning stage is.

A stage is a frozen dataclass: its fields are its settings, kept in the manifest under the stage's name.  It says what it
needs and adds the nodes that choose; importing its file must not import onnx_ir or onnxscript, since a bundle that is only
run knows its stages, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.graphs.needs import (
    CLS_ATTENTION,
    CLS_FEATURES,
    EARLY_CLS_ATTENTION,
    EARLY_RECEIVED_ATTENTION,
    MEAN_KEYS,
    MIDDLE_RECEIVED_ATTENTION,
    RECEIVED_ATTENTION,
)
from sts_export.pruning.settings import check_settings

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.configs import DecoderConfig
    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs, Stage2Inputs

_CLS, _FULL = "a CLS token", "a layer that attends to the whole picture"
# Needs of the vision tower as messages name them.
WORDS = {
    CLS_ATTENTION: _CLS,
    EARLY_CLS_ATTENTION: _CLS,
    CLS_FEATURES: _CLS,
    RECEIVED_ATTENTION: _FULL,
    EARLY_RECEIVED_ATTENTION: _FULL,
    MIDDLE_RECEIVED_ATTENTION: _FULL,
    MEAN_KEYS: _FULL,
}


@dataclass(frozen=True)
class Stage(ABC):
    """What both kinds have.

    Attributes:
        name: as users and manifests write it; unique among the stages of its kind.
        summary: what it does, in half a line.
        keeps_all: it drops nothing, so that what it keeps follows from that: K = N, or K' = K.
        plugin: the plugin that TensorRT may put in the place of the ONNX function of the same name; None without one.

    Raises:
        BudgetError: a setting is of another type or not among its choices.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    keeps_all: ClassVar[bool] = False
    plugin: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def needs(self) -> frozenset[str]:
        """With these settings."""
        return frozenset()


@dataclass(frozen=True)
class Stage1(Stage):
    """Before the LLM: which K tokens of an image are kept.

    ``needs`` names what it takes of the tower and the selector beside the features (``graphs.needs``).

    Attributes:
        merges: rows that it drops become part of rows that it keeps.
    """

    merges: ClassVar[bool] = False

    @abstractmethod
    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        """Add the nodes; left out where every token of every image is kept."""

    def own_weights(self, width: int) -> Mapping[str, tuple[int, ...]]:
        """Weights that come from a file of their own (--selector-weights), not from the checkpoint: name -> shape.

        They are graph parameters of these names, always float32, for a tower whose features have ``width``.
        """
        return {}

    def scratch_bytes(self, max_crops: int, max_rows: int) -> int:
        """About how much its nodes hold at once beside their inputs, for the largest image: ``max_crops`` of ``max_rows``.

        0 says that it is little beside what a layer of the vision tower holds.  Projected rows and embedded text, where it
        needs them, are counted for it.
        """
        return 0


@dataclass(frozen=True)
class Stage2(Stage):
    """Inside the LLM, after layer L - 1 in prefill: which K' visual rows go on.

    ``needs`` names at most one of OWN_QUERY_KEY and NEXT_QUERY_KEY, and what else it takes of the decoder (``graphs.needs``).
    """

    @abstractmethod
    def build(self, op: Op, inputs: Stage2Inputs) -> tuple[ir.Value, ir.Value]:
        """Add the nodes; also where K' = K.

        Returns:
            kept_rows: [batch, rows - visual + visual_keep] int64, ascending; text rows always survive, and with one dummy
            visual row (decode) all rows do.  last_row: [batch] int64, where the last real token stands among them.
        """

    def scratch_bytes(self, decoder: DecoderConfig, rows: int) -> int:
        """About how much its nodes hold at once beside their inputs, for a prompt of ``rows`` rows, whatever is visual of them.

        0 says that it is little beside what a layer of the decoder holds.
        """
        return 0
