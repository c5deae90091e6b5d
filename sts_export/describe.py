"""A bundle in words."""

from __future__ import annotations

from sts_export.bundle import Bundle
from sts_export.families.spec import ModelSpec

_ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}


def kv_bytes(model: ModelSpec, layers: int, rows: int, dtype: str) -> int:
    """Bytes of ``layers`` layers of keys and values with ``rows`` rows (METHOD, "what the numbers must come out as")."""
    return layers * 2 * model.decoder.num_kv_heads * model.decoder.head_dim * rows * _ITEM[dtype]


def describe(bundle: Bundle) -> str:
    """Several lines for people; ``--json`` prints the manifest itself."""
    manifest = bundle.manifest
    model, pruning, capacities = manifest.model, manifest.pruning, manifest.capacities
    decoder, layer = model.decoder, pruning.prune_layer
    lower = kv_bytes(model, layer, capacities.lower, manifest.dtype)
    upper = kv_bytes(model, decoder.num_layers - layer, capacities.upper, manifest.dtype)
    full_rows = capacities.prompt_tokens + pruning.num_visual_tokens + capacities.new_tokens
    full = kv_bytes(model, decoder.num_layers, full_rows, manifest.dtype)
    weights = sum(record.size for record in manifest.weights.files)
    where = f"linked from {manifest.weights.folder}" if manifest.weights.mode == "link" else "in the bundle"
    unused = "; ".join(f"{count} tensors: {reason}" for reason, count in manifest.unused_weights.items()) or "none"
    vision, dtype = model.vision, manifest.dtype
    full_visual = kv_bytes(model, decoder.num_layers, pruning.num_visual_tokens, dtype)
    lines = [
        ("model", f"{manifest.source['model']} ({model.family}), {dtype}"),
        ("vision", f"{vision.feature_layers} layers x {vision.hidden_size}, {pruning.num_visual_tokens} visual tokens"),
        (
            "decoder",
            f"{decoder.num_layers} layers x {decoder.hidden_size}, {decoder.num_heads} heads, {decoder.num_kv_heads} KV",
        ),
        ("pruning", f"{pruning.method}: K = {pruning.keep_stage1}, K' = {pruning.keep_stage2} after layer {layer}"),
        ("average", f"{pruning.average:g} visual tokens per decoder layer"),
        ("choices", f"anchor {pruning.anchor}, positions {pruning.positions}, score layer {pruning.score_layer}"),
        ("capacity", f"{capacities.prompt_tokens} prompt + {capacities.new_tokens} new tokens"),
        ("KV rows", f"{capacities.lower} in the lower layers, {capacities.upper} in the upper ones"),
        ("KV cache", f"{_size(lower)} lower + {_size(upper)} upper; unpruned {_size(full)}"),
        ("visual KV", f"{_size(_visual_kv(bundle))}; unpruned {_size(full_visual)}"),
        ("weights", f"{_size(weights)} {where}; unused: {unused}"),
        ("graphs", ", ".join(f"{name} {_size(record.size)}" for name, record in manifest.graph_files.items())),
        ("made by", ", ".join(f"{name} {number}" for name, number in manifest.tools.items())),
    ]
    return "\n".join(f"{label:<10}{text}" for label, text in lines)


def _visual_kv(bundle: Bundle) -> int:
    manifest = bundle.manifest
    pruning, layers = manifest.pruning, manifest.model.decoder.num_layers
    return kv_bytes(manifest.model, pruning.prune_layer, pruning.keep_stage1, manifest.dtype) + kv_bytes(
        manifest.model, layers - pruning.prune_layer, pruning.keep_stage2, manifest.dtype
    )


def _size(nbytes: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024  # type: ignore[assignment]
    return f"{nbytes:.4g} GiB"
