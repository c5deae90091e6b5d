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


def _half(num_layers: int) -> int:
    return num_layers // 2


def _three_eighths(num_layers: int) -> int:
    """12 of 32, rounded to the nearest, halves up."""
    return (3 * num_layers + 4) // 8


def _second(_num_layers: int) -> int:
    return 2


@dataclass(frozen=True)
class Method:
    """A stage before the LLM and one inside it.

    Args:
        name: as users and manifests write it.
        summary: what it is, in half a line.
        stage1, stage2: as ``--stage1`` and ``--stage2`` take them, ``NAME`` or ``NAME:key=value,key=value``.
        ratio: K'/K that budgets are solved with; 1: stage 2 drops nothing, K' = K.
        prune_layer: T -> L where none is asked for; see :meth:`layer`.
        alternatives: in place of ``stage1``, in this order, where the vision tower does not give what that needs.
        keeps_positions: survivors of stage 2 keep their positions where nothing else is asked for.
    """

    name: str
    summary: str
    stage1: str
    stage2: str
    ratio: float = DEFAULT_RATIO
    prune_layer: Callable[[int], int] = default_prune_layer
    alternatives: tuple[str, ...] = ()
    keeps_positions: bool = False

    @property
    def stage1_choices(self) -> tuple[str, ...]:
        """Its stages before the LLM, the preferred one first."""
        return (self.stage1, *self.alternatives)

    def layer(self, num_layers: int) -> int:
        """L for a decoder of T layers where none is asked for; there is a layer on either side of it."""
        return max(1, min(self.prune_layer(num_layers), num_layers - 1))


# The first is the default.  sts-s keeps its stage 2 in the graph, where K' = K leaves it nothing to drop.
METHODS = (
    Method("sts", "both stages of STS", "repulsion", "last-token"),
    Method("sts-s", "stage 1 of STS alone: K' = K", "repulsion", "last-token", ratio=1.0),
    Method("star", "STAR", "received-attention", "text-visual", prune_layer=_half),
    Method("learnpruner", "LearnPruner, with weights of your own", "learned", "text-visual", prune_layer=_three_eighths),
    Method("fastv", "FastV", "keep-all", "last-token", prune_layer=_second),
    Method("fastervlm", "FasterVLM", "cls-attention", "keep-all", ratio=1.0, alternatives=("received-attention",)),
    Method("visionzip", "VisionZip", "visionzip", "keep-all", ratio=1.0, alternatives=("visionzip:score=received",)),
    Method("divprune", "DivPrune", "divprune", "keep-all", ratio=1.0),
    Method("dart", "DART", "keep-all", "dart", prune_layer=_second, keeps_positions=True),
    Method("vscan", "VScan", "vscan", "last-token:score_layer=next", alternatives=("vscan:score=received",)),
    Method("hiprune", "HiPrune", "hiprune", "keep-all", ratio=1.0),
    Method("starpro", "STAR-Pro with one cut", "residual-qr", "text-visual", prune_layer=_three_eighths),
    Method("cdpruner", "CDPruner", "cdpruner", "keep-all", ratio=1.0),
    Method("random", "a baseline", "random", "random"),
    Method("none", "a baseline: the unpruned model", "keep-all", "keep-all", ratio=1.0),
)
