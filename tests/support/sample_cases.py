"""The cases of a bundle with two decoder parts: every graph in every phase."""

from __future__ import annotations

from sts_export.tensorrt.portable.sample_inputs import Case

PREFILL, DECODE = 0, 1
CASES = (
    Case("vision_encoder", "vision_encoder", PREFILL),
    Case("selector", "selector", PREFILL),
    Case("llm_lower_prefill", "llm_lower", PREFILL),
    Case("llm_upper_prefill", "llm_upper", PREFILL),
    Case("llm_lower_decode", "llm_lower", DECODE),
    Case("llm_upper_decode", "llm_upper", DECODE),
)
