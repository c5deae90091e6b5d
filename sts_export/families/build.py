"""The four graphs of a model, given where its weights are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sts_export.families.spec import Capacities, Graphs, ModelSpec
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract, llm_lower_contract, llm_upper_contract, selector_contract
from sts_export.pruning.stage import NEXT_QUERY_KEY

if TYPE_CHECKING:
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
    tower, needs = spec.tower, pruning.tower_needs
    models = {
        "vision_encoder": tower.graph(dtype, names.vision, needs),
        "selector": selector(
            tower.contract(dtype, needs).outputs,
            spec.projector,
            dtype,
            hidden_size=decoder.hidden_size,
            width=tower.width,
            prefix=names.projector,
            stage1=pruning.stage1.build if pruning.drops_before else None,
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


def contracts(spec: ModelSpec, pruning: PruningConfig, capacities: Capacities, dtype: Dtype) -> dict[str, GraphContract]:
    """Inputs and outputs of the four graphs."""
    decoder, layer = spec.decoder, pruning.prune_layer
    encoder = spec.tower.contract(dtype, pruning.tower_needs)
    return {
        "vision_encoder": encoder,
        "selector": selector_contract(encoder.outputs, decoder.hidden_size, dtype),
        "llm_lower": llm_lower_contract(decoder, layer, capacities.lower, dtype),
        "llm_upper": llm_upper_contract(decoder, layer, capacities.upper, dtype),
    }
