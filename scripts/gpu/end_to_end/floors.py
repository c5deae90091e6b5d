"""Fewest bytes that one decode step must read: weights of the decoder, and the cached keys and values."""

from __future__ import annotations

from math import prod
from typing import Any

from sts_export.bundle.manifest import Bundle, Manifest
from sts_export.dtypes import ELEMENT_TYPES


def weight_bytes(bundle: Bundle, *graphs: str) -> int:
    """Bytes of the weight files that these graphs refer to; the embedding table is left out, of which a step reads one row."""
    import onnx

    total = 0
    for graph in graphs:
        for tensor in onnx.load(bundle.graph_file(graph), load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL and "embed_tokens" not in tensor.name:
                total += int(next(entry.value for entry in tensor.external_data if entry.key == "length"))
    return total


def row_bytes(manifest: Manifest) -> int:
    """Keys and values of one row in one layer."""
    decoder = manifest.model.decoder
    return 2 * decoder.num_kv_heads * decoder.head_dim * ELEMENT_TYPES[manifest.dtype].itemsize


def decode_bytes(manifest: Manifest, weights: int, prompt_rows: dict[str, int], new_tokens: int) -> int:
    """Of a decode step half-way through the answer.

    Args:
        weights: of the whole decoder, from weight_bytes.
        prompt_rows: rows in the caches of each part after the prompt, by its label.
    """
    rows = sum(len(part.layers) * (prompt_rows[part.label] + new_tokens // 2) for part in manifest.pruning.parts)
    return weights + rows * row_bytes(manifest)


def allocated_cache_bytes(manifest: Manifest) -> dict[str, int]:
    """What the caches of one request must take by the manifest's contracts."""
    sizes = {}
    for part in manifest.pruning.parts:
        contract = manifest.graphs[part.name]
        specs = [contract.input(before) for before, _ in contract.caches]
        sizes[part.label] = sum(prod(int(dim) for dim in spec.shape[1:]) * ELEMENT_TYPES[spec.dtype].itemsize for spec in specs)
    return sizes


def decode_report(bytes_per_token: int, bandwidth: float, decode_ms: float) -> dict[str, Any]:
    """Measured decode speed beside the fastest that the memory allows."""
    floor_ms = bytes_per_token / bandwidth * 1e3
    return {
        "bytes_per_token": bytes_per_token,
        "tokens_per_s": 1e3 / decode_ms,
        "floor_tokens_per_s": 1e3 / floor_ms,
        "share_of_floor": floor_ms / decode_ms,
    }
