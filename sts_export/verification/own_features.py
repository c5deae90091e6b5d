"""The reference's stage 1 on what the bundle's own graphs give it, so that their rounding is no part of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sts_export.exporting.quantized_weights import block_rounded
from sts_export.generation.pipeline import Pipeline
from sts_export.graphs.needs import CLS_FEATURES
from sts_export.lowering.quantized_graphs import SCHEMES, Blocks, fitting_block

if TYPE_CHECKING:
    from torch import Tensor

    from sts_export.pruning.config import PruningConfig
    from sts_export.reference import ReferenceModel
    from sts_export.reference.pruning.crops import Request, Selection
    from sts_export.reference.pruning.stage import Choices
    from sts_export.reference.trace import Trace
    from sts_export.requests.messages import Messages


def leaves_more_than_a_set(config: PruningConfig) -> bool:
    """Whether kept tokens alone do not say what goes on: some are merged, or a CLS token stands among them."""
    return config.merges or CLS_FEATURES in config.tower_needs


def select_on_own_features(
    pipeline: Pipeline,
    model: ReferenceModel,
    config: PruningConfig,
    prompt: str | Messages,
    images: Sequence[Image.Image],
    weights: Mapping[str, Tensor],
) -> Trace:
    """What stage 1 leaves of each image, and how it chose; the rest of the trace is empty.

    Args:
        model: projects tokens and embeds text.
        config: of the request.
        weights: of a learned selector.
    """
    from sts_export.reference.pruning.crops import Request
    from sts_export.reference.trace import Trace

    ids = [token for token in model.prepare(prompt, list(images)).ids if token != model.image_token]
    text = embedded_as_stored(model.embed(ids), pipeline.manifest.quantization)
    request = Request(model.project, text, 0, weights)
    trace = Trace()
    for image in images:
        selection, choices = _select(pipeline, config, image, request)
        trace.selections.append(selection)
        trace.choices.append(choices)
    return trace


def embedded_as_stored(rows: Tensor, quantization: str | None) -> Tensor:
    """[text, width] float32 of the checkpoint's embedding, as the selector reads them: it shares the decoder's table.

    Args:
        quantization: of the bundle.
    """
    import torch

    table = None if quantization is None else SCHEMES[quantization].table
    block = None if table is None else fitting_block(rows.shape[1], table.block_size)
    if table is None or block is None:
        return rows
    return torch.from_numpy(block_rounded(rows.numpy(), Blocks(table.bits, block)))


def _select(
    pipeline: Pipeline, config: PruningConfig, image: Image.Image, request: Request
) -> tuple[Selection, list[Choices | None]]:
    import torch

    from sts_export.reference import find_stage1, select_by_crop

    prepared = pipeline.prepared(image)
    features = {name: torch.from_numpy(array.astype(np.float32)) for name, array in pipeline.features(image).items()}
    rows = torch.from_numpy(prepared.token_order)
    place, columns = rows % prepared.crop_rows, prepared.crop_columns
    cls = features.pop(CLS_FEATURES, None)
    of_tokens = {name: values.flatten(0, 1)[rows] for name, values in features.items()}
    return select_by_crop(
        find_stage1(config.stage1.name),
        of_tokens.pop("visual_features"),
        rows // prepared.crop_rows,
        config.keeps(prepared.num_tokens)[0],
        of_tokens,
        asdict(config.stage1),
        places=torch.stack([place // columns, place % columns], dim=1),
        grid=(prepared.crop_rows // columns, columns),
        alone=pipeline.manifest.model.tower.max_crops == 1,
        cls=cls,
        request=request,
    )
