"""The PyTorch reference of STS for LLaVA-1.5, LLaVA-NeXT and Qwen2.5-VL (needs the ``reference`` extra).

Written from METHOD on top of transformers' own modules and from nothing else of this project but the pruning
configuration, so that ``sts-export verify`` and the tests compare the exported graphs with something independent.

    model = ReferenceModel.open("llava-1.5-7b-hf")
    result = generate(model, "What is on the table?", [image], config, max_new_tokens=32)
"""

from __future__ import annotations

from sts_export.reference.generate import ReferenceResult, Trace, generate
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import NEWLINE, ImageInput, Messages, Prompt, VisualFeatures
from sts_export.reference.stages import (
    Repulsion,
    equal_shares,
    last_token_scores,
    last_token_topk,
    repulsion_select,
    repulsion_trace,
    select_by_crop,
    top_positions,
)

__all__ = [
    "NEWLINE",
    "ImageInput",
    "Messages",
    "Prompt",
    "ReferenceModel",
    "ReferenceResult",
    "Repulsion",
    "Trace",
    "VisualFeatures",
    "equal_shares",
    "generate",
    "last_token_scores",
    "last_token_topk",
    "repulsion_select",
    "repulsion_trace",
    "select_by_crop",
    "top_positions",
]
