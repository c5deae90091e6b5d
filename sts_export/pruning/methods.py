"""Methods: pairs of stages with a name, and how their budgets are split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sts_export.pruning.budget import DEFAULT_RATIO

# The paper's prune layers: 7B, 13B and Qwen2.5-VL-7B decoders; other depths prune half-way.
_PAPER_PRUNE_LAYERS = {32: 16, 40: 16, 28: 14}


def default_prune_layer(num_layers: int) -> int:
    """L for a decoder of T layers: the paper's choice where it made one, else T // 2."""
    return _PAPER_PRUNE_LAYERS.get(num_layers, num_layers // 2)


@dataclass(frozen=True)
class Method:
    """A stage before the LLM and one inside it.

    Args:
        name: as users and manifests write it.
        summary: what it is, in half a line.
        stage1, stage2: as ``--stage1`` and ``--stage2`` take them, ``NAME`` or ``NAME:key=value,key=value``.
        ratio: K'/K that budgets are solved with; 1: stage 2 drops nothing, K' = K.
        prune_layer: T -> L where none is asked for.
    """

    name: str
    summary: str
    stage1: str
    stage2: str
    ratio: float = DEFAULT_RATIO
    prune_layer: Callable[[int], int] = default_prune_layer


# The first is the default.  sts-s keeps its stage 2 in the graph, where K' = K leaves it nothing to drop.
METHODS = (
    Method("sts", "both stages of STS", "repulsion", "last-token"),
    Method("sts-s", "stage 1 of STS alone: K' = K", "repulsion", "last-token", ratio=1.0),
)
