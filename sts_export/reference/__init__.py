"""The PyTorch reference of every pruning method for LLaVA-1.5, LLaVA-NeXT and Qwen2.5-VL (needs the ``reference`` extra).

Written from docs/method.md on top of transformers' own modules and from nothing else of this project but the pruning
configuration, so that ``sts-export verify`` and the tests compare the exported graphs with something independent.

    model = ReferenceModel.open("llava-1.5-7b-hf")
    result = generate(model, "What is on the table?", [image], config, max_new_tokens=32)
"""

from __future__ import annotations

from sts_export.reference.generate import ReferenceResult, generate
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import NEWLINE, ImageInput, Messages, Prompt, VisualFeatures
from sts_export.reference.pruning.crops import Request, Selection, equal_shares, select_by_crop
from sts_export.reference.pruning.registry import find_stage1, find_stage2
from sts_export.reference.pruning.stage import CLS, Choices, Crop, Kept, Prefill
from sts_export.reference.pruning.stage1.repulsion import repulsion_select, repulsion_trace
from sts_export.reference.pruning.stage2.last_token import last_token_scores, last_token_topk, top_positions
from sts_export.reference.selector import load_selector
from sts_export.reference.trace import Trace

__all__ = [
    "CLS",
    "NEWLINE",
    "Choices",
    "Crop",
    "ImageInput",
    "Kept",
    "Messages",
    "Prefill",
    "Prompt",
    "ReferenceModel",
    "ReferenceResult",
    "Request",
    "Selection",
    "Trace",
    "VisualFeatures",
    "equal_shares",
    "find_stage1",
    "find_stage2",
    "generate",
    "last_token_scores",
    "last_token_topk",
    "load_selector",
    "repulsion_select",
    "repulsion_trace",
    "select_by_crop",
    "top_positions",
]
