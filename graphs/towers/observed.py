"""What a pruning stage may ask a vision tower for, and which encoder layer shows it.

Names and shapes are those of ``graphs.needs``.  Each is an output of the encoder after visual_features, in the order given
here.  Apart from the graphs, so that a bundle is opened without onnxscript.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal

from sts_export.graphs.contracts import TensorSpec
from sts_export.graphs.needs import (
    CLS_ATTENTION,
    EARLY_CLS_ATTENTION,
    EARLY_RECEIVED_ATTENTION,
    MEAN_KEYS,
    MIDDLE_RECEIVED_ATTENTION,
    RECEIVED_ATTENTION,
)

# One of an attention layer's observations.
Sight = Literal["cls_attention", "received_attention", "mean_keys"]
Depth = Literal["feature", "early", "middle"]

OBSERVED: Mapping[str, tuple[Sight, Depth]] = {
    CLS_ATTENTION: ("cls_attention", "feature"),
    EARLY_CLS_ATTENTION: ("cls_attention", "early"),
    RECEIVED_ATTENTION: ("received_attention", "feature"),
    EARLY_RECEIVED_ATTENTION: ("received_attention", "early"),
    MIDDLE_RECEIVED_ATTENTION: ("received_attention", "middle"),
    MEAN_KEYS: ("mean_keys", "feature"),
}

_FLOAT32 = 4  # bytes
# Of the scores of the queries that are computed at once.  Their softmax takes the same again: 64 MiB.
_SCORES = 32 << 20


@dataclass(frozen=True)
class Steps:
    """Received attention is computed for ``at_once`` queries of each crop and head in each of ``count`` steps."""

    at_once: int
    count: int


@dataclass(frozen=True)
class Look:
    """What is asked of one layer.

    Args:
        sights: none of most layers.
        steps: in which received attention is computed.
    """

    sights: frozenset[Sight] = frozenset()
    steps: Steps = Steps(1, 1)


@dataclass(frozen=True)
class Depths:
    """Encoder layers that are looked at, counted from 1.

    Args:
        feature: the one that shows most of what the features are made of.
        early: about a quarter of the way there.
        middle: between them.
    """

    feature: int
    early: int
    middle: int

    def sights(self, needs: Set[str]) -> dict[int, frozenset[Sight]]:
        """Layer -> what is asked of it."""
        asked = [where for name, where in OBSERVED.items() if name in needs]
        layers = {self.of(depth) for _, depth in asked}
        return {layer: frozenset(sight for sight, depth in asked if self.of(depth) == layer) for layer in layers}

    def of(self, depth: Depth) -> int:
        """The layer."""
        layer: int = getattr(self, depth)
        return layer


def observed_specs(needs: Set[str], rows: tuple[int | str, int | str], head_dim: int) -> list[TensorSpec]:
    """The outputs, all float32: [*rows], and mean_keys [*rows, head_dim]."""
    return [
        TensorSpec(name, (*rows, head_dim) if sight == "mean_keys" else rows, "float32")
        for name, (sight, _) in OBSERVED.items()
        if name in needs
    ]


def query_steps(crops: int, heads: int, rows: int) -> Steps:
    """As few steps as 64 MiB allow, for all ``rows`` of a crop as queries; of one query at least.

    Args:
        crops: of the largest picture.
        rows: of its crops.
    """
    most = max(1, _SCORES // (crops * heads * rows * _FLOAT32))
    count = -(-rows // most)
    return Steps(-(-rows // count), count)


def observed_bytes(needs: Set[str], crops: int, heads: int, rows: int, head_dim: int) -> int:
    """What the nodes of these outputs hold at once beside their inputs, about, for the largest picture.

    Queries and keys are taken as float32 numbers, keys transposed as well.
    """
    sights = {sight for name, (sight, _) in OBSERVED.items() if name in needs}
    if not sights:
        return 0
    copies = 2 * crops * heads * rows * head_dim * _FLOAT32
    if "received_attention" not in sights:
        return copies
    return copies + 2 * crops * heads * query_steps(crops, heads, rows).at_once * rows * _FLOAT32
