"""The graphs of a model, given where its weights are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sts_export.families.capacities import Capacities
from sts_export.families.spec import Graphs, ModelSpec
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract, selector_contract
from sts_export.graphs.decoder.contract import decoder_part_contract

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
    """The graphs, in the order in which they run."""
    # Building needs onnxscript; a bundle that is only run does not.
    from sts_export.graphs.decoder.part import decoder_part
    from sts_export.graphs.selector import TextTable, selector

    decoder, tower, needs = spec.decoder, spec.tower, pruning.tower_needs
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
            max_crops=tower.max_crops,
            max_rows=tower.rows_per_crop,
            needs=pruning.stage1_needs,
            merges=pruning.merges,
            text=TextTable(names.decoder, decoder.vocab_size),
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
                stage2=pruning.stage2.build,
                needs=pruning.stage2.needs,
                with_newline=spec.max_image_newlines > 0,
            )
            for part, rows in zip(pruning.parts, capacities.rows, strict=True)
        },
    }
    return Graphs(models, contracts(spec, pruning, capacities, dtype))


def contracts(spec: ModelSpec, pruning: PruningConfig, capacities: Capacities, dtype: Dtype) -> dict[str, GraphContract]:
    """Inputs and outputs of the graphs, in the order in which they run."""
    decoder, encoder = spec.decoder, spec.tower.contract(dtype, pruning.tower_needs)
    return {
        "vision_encoder": encoder,
        "selector": selector_contract(encoder.outputs, decoder.hidden_size, dtype, pruning.stage1_needs, merges=pruning.merges),
        **{
            part.name: decoder_part_contract(decoder, part, rows, dtype, pruning.stage2.needs)
            for part, rows in zip(pruning.parts, capacities.rows, strict=True)
        },
    }
