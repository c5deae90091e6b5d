"""The graphs of a model, given where its weights are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sts_export.families.capacities import Capacities
from sts_export.families.spec import Graphs, ModelSpec
from sts_export.graphs.configs import Dtype, QwenVisionConfig
from sts_export.graphs.contracts import (
    GraphContract,
    clip_encoder_contract,
    qwen_encoder_contract,
    selector_contract,
)
from sts_export.graphs.decoder_contract import decoder_part_contract

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
    """The graphs, in the order in which they run."""
    # Building needs onnxscript; a bundle that is only run does not.
    from sts_export.graphs.decoder_part import decoder_part
    from sts_export.graphs.selector import selector

    decoder = spec.decoder
    models = {
        "vision_encoder": _vision_encoder(spec, names.vision, dtype, with_saliency=_needs_saliency(pruning)),
        "selector": selector(
            spec.vision,
            spec.projector,
            dtype,
            hidden_size=decoder.hidden_size,
            width=spec.visual_width,
            prefix=names.projector,
            keep_all=_stage1_keeps_all(pruning),
            anchor=pruning.anchor,
            epsilon=pruning.epsilon,
        ),
        **{
            part.name: decoder_part(
                decoder,
                part,
                dtype,
                prefix=names.decoder,
                head_name=names.head,
                capacity=rows,
                positions=capacities.positions,
                score_next=pruning.score_layer == "next",
                with_newline=spec.max_image_newlines > 0,
            )
            for part, rows in zip(pruning.parts, capacities.rows, strict=True)
        },
    }
    return Graphs(models, contracts(spec, pruning, capacities, dtype))


def _vision_encoder(spec: ModelSpec, prefix: str, dtype: Dtype, *, with_saliency: bool) -> ir.Model:
    if isinstance(spec.vision, QwenVisionConfig):
        from sts_export.graphs.towers.qwen2_5_vl import qwen_encoder

        return qwen_encoder(spec.vision, dtype, prefix=prefix)
    from sts_export.graphs.towers.clip import clip_encoder

    return clip_encoder(spec.vision, dtype, prefix=prefix, with_saliency=with_saliency)


def contracts(spec: ModelSpec, pruning: PruningConfig, capacities: Capacities, dtype: Dtype) -> dict[str, GraphContract]:
    """Inputs and outputs of the graphs, in the order in which they run."""
    vision, decoder = spec.vision, spec.decoder
    with_saliency = _needs_saliency(pruning)
    if isinstance(vision, QwenVisionConfig):
        encoder = qwen_encoder_contract(vision, dtype)
    else:
        encoder = clip_encoder_contract(vision, dtype, with_saliency=with_saliency)
    return {
        "vision_encoder": encoder,
        "selector": selector_contract(vision, decoder.hidden_size, dtype, with_saliency=with_saliency),
        **{
            part.name: decoder_part_contract(decoder, part, rows, dtype)
            for part, rows in zip(pruning.parts, capacities.rows, strict=True)
        },
    }


def _stage1_keeps_all(pruning: PruningConfig) -> bool:
    """Whether stage 1 keeps every token of every image; PruningConfig.keeps sees to it that the largest one decides."""
    return pruning.keep_stage1 == pruning.num_visual_tokens


def _needs_saliency(pruning: PruningConfig) -> bool:
    return pruning.anchor == "saliency" and not _stage1_keeps_all(pruning)
