"""Stages as configurations name them, without graphs: the reference is tested whatever the graphs do."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

from sts_export.graphs.needs import (
    CLS_ATTENTION,
    CLS_FEATURES,
    EARLY_CLS_ATTENTION,
    EARLY_RECEIVED_ATTENTION,
    GRID,
    MEAN_KEYS,
    MIDDLE_RECEIVED_ATTENTION,
    PROJECTED,
    RECEIVED_ATTENTION,
    SEED,
    TEXT,
)
from sts_export.pruning.config import Positions, PruningConfig
from sts_export.pruning.stage import Stage1, Stage2
from sts_export.reference import ReferenceModel


@dataclass(frozen=True)
class Before(Stage1):
    """Before the LLM."""

    needed: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        return self.needed

    def build(self, op: Any, inputs: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Inside(Stage2):
    """Inside the LLM."""

    def build(self, op: Any, inputs: Any) -> Any:
        raise NotImplementedError


def before(name: str, *needs: str, merges: bool = False, **settings: Any) -> Before:
    fields = [(key, type(value)) for key, value in settings.items()]
    of_class = {"name": name, "summary": "", "merges": merges, "needed": frozenset(needs)}
    stage: Before = make_dataclass(name, fields, bases=(Before,), namespace=of_class, frozen=True)(**settings)
    return stage


def inside(name: str, **settings: Any) -> Inside:
    fields = [(key, type(value)) for key, value in settings.items()]
    namespace = {"name": name, "summary": "", "keeps_all": name == "keep-all"}
    stage: Inside = make_dataclass(name, fields, bases=(Inside,), namespace=namespace, frozen=True)(**settings)
    return stage


CLS_STAGES = {
    "cls-attention": before("cls-attention", CLS_ATTENTION),
    "visionzip": before("visionzip", CLS_ATTENTION, MEAN_KEYS, CLS_FEATURES, merges=True, score="cls"),
    "vscan": before("vscan", CLS_ATTENTION, EARLY_CLS_ATTENTION, GRID, merges=True, score="cls"),
}
STAGES = {
    "received-attention": before("received-attention", RECEIVED_ATTENTION),
    "hiprune": before("hiprune", RECEIVED_ATTENTION, MIDDLE_RECEIVED_ATTENTION, GRID, alpha=1.0),
    "divprune": before("divprune", PROJECTED),
    "residual-qr": before("residual-qr"),
    "random": before("random", SEED, GRID),
    "visionzip, received": before("visionzip", RECEIVED_ATTENTION, MEAN_KEYS, merges=True, score="received"),
    "vscan, received": before("vscan", RECEIVED_ATTENTION, EARLY_RECEIVED_ATTENTION, GRID, merges=True, score="received"),
    "cdpruner": before("cdpruner", PROJECTED, TEXT, relevance_weight=0.5),
    "learned": before("learned"),
}
INSIDE = {
    "keep-all": inside("keep-all"),
    "last-token": inside("last-token", score_layer="own"),
    "text-visual": inside("text-visual", score_layer="own"),
    "text-visual, next": inside("text-visual", score_layer="next"),
    "dart": inside("dart"),
    "random": inside("random"),
}


def pair(
    model: ReferenceModel, stage1: Before, stage2: Inside, keep1: int, keep2: int, positions: Positions = "reindex"
) -> PruningConfig:
    """Both stages of a model, with stage 2 after two layers."""
    name = f"{stage1.name}+{stage2.name}"
    return PruningConfig(model.num_visual_tokens, model.num_layers, 2, keep1, keep2, name, stage1, stage2, positions)
