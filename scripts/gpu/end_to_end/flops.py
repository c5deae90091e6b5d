"""Multiply-adds of a prefill by formula, beside what was timed: docs/method.md, "Numbers to meet"."""

from __future__ import annotations

from collections.abc import Mapping

from sts_export.bundle.manifest import Manifest


def layer_multiply_adds(tokens: int, width: int, mlp: int, kv_width: int) -> int:
    """Of one decoder layer: 2nd² + 2n·d·d_kv + 2n²d + 3ndm, which is 4nd² + 2n²d + 3ndm without grouped queries."""
    return tokens * (2 * width * width + 2 * width * kv_width + 2 * tokens * width + 3 * width * mlp)


def prefill_flops(manifest: Manifest, prompt_rows: Mapping[str, int]) -> int:
    """Floating-point operations of the decoder's layers, two for a multiply-add; without vision tower, selection and head.

    Args:
        prompt_rows: rows that each of the decoder's parts runs, by its label.
    """
    decoder = manifest.model.decoder
    kv_width = decoder.num_kv_heads * decoder.head_dim
    sizes = (decoder.hidden_size, decoder.intermediate_size, kv_width)
    return 2 * sum(len(part.layers) * layer_multiply_adds(prompt_rows[part.label], *sizes) for part in manifest.pruning.parts)
