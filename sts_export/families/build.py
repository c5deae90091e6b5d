"""The four graphs of a model, given where its weights are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sts_export.families.spec import Capacities, Graphs, ModelSpec
from sts_export.graphs.configs import Dtype, QwenVisionConfig
from sts_export.graphs.contracts import (
    GraphContract,
    clip_encoder_contract,
    llm_lower_contract,
    llm_upper_contract,
    qwen_encoder_contract,
    selector_contract,
)
from sts_export.pruning.stage import CLS_ATTENTION, NEXT_QUERY_KEY

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.pruning.config import PruningConfig


@dataclass(frozen=True)
class Names:
    """Prefixes of the parts in the public checkpoints; ``head`` is the untied head without ``.weight``."""

    vision: str
    projector: str
    decoder: str
    head: str


def build(spec: ModelSpec, names: Names, pruning: PruningConfig, capacities: Capacities, dtype: Dtype) -> Graphs:
    """The four graphs."""
    # Building needs onnxscript; a bundle that is only run does not.
    from sts_export.graphs.llm_lower import llm_lower
    from sts_export.graphs.llm_upper import llm_upper
    from sts_export.graphs.selector import selector

    decoder, layer = spec.decoder, pruning.prune_layer
    models = {
        "vision_encoder": _vision_encoder(spec, names.vision, dtype, needs=pruning.tower_needs),
        "selector": selector(
            spec.vision,
            spec.projector,
            dtype,
            hidden_size=decoder.hidden_size,
            width=spec.visual_width,
            prefix=names.projector,
            stage1=pruning.stage1.build if pruning.drops_before else None,
            needs=pruning.tower_needs,
        ),
        "llm_lower": llm_lower(
            decoder,
            dtype,
            prefix=names.decoder,
            prune_layer=layer,
            capacity=capacities.lower,
            positions=capacities.positions,
            stage2=pruning.stage2.build,
            score_next=NEXT_QUERY_KEY in pruning.stage2.needs,
            with_newline=spec.max_image_newlines > 0,
        ),
        "llm_upper": llm_upper(
            decoder,
            dtype,
            prefix=names.decoder,
            head_name=names.head,
            prune_layer=layer,
            capacity=capacities.upper,
            positions=capacities.positions,
        ),
    }
    return Graphs(models, contracts(spec, pruning, capacities, dtype))


def _vision_encoder(spec: ModelSpec, prefix: str, dtype: Dtype, *, needs: frozenset[str]) -> ir.Model:
    if isinstance(spec.vision, QwenVisionConfig):
        from sts_export.graphs.towers.qwen2_5_vl import qwen_encoder

        return qwen_encoder(spec.vision, dtype, prefix=prefix)
    from sts_export.graphs.towers.clip import clip_encoder

    return clip_encoder(spec.vision, dtype, prefix=prefix, with_saliency=CLS_ATTENTION in needs)


def contracts(spec: ModelSpec, pruning: PruningConfig, capacities: Capacities, dtype: Dtype) -> dict[str, GraphContract]:
    """Inputs and outputs of the four graphs."""
    vision, decoder, layer = spec.vision, spec.decoder, pruning.prune_layer
    if isinstance(vision, QwenVisionConfig):
        encoder = qwen_encoder_contract(vision, dtype)
    else:
        encoder = clip_encoder_contract(vision, dtype, with_saliency=CLS_ATTENTION in pruning.tower_needs)
    return {
        "vision_encoder": encoder,
        "selector": selector_contract(vision, decoder.hidden_size, dtype, needs=pruning.tower_needs),
        "llm_lower": llm_lower_contract(decoder, layer, capacities.lower, dtype),
        "llm_upper": llm_upper_contract(decoder, layer, capacities.upper, dtype),
    }
