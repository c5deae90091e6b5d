"""A bundle in words."""

from __future__ import annotations

from dataclasses import asdict

from sts_export.bundle.manifest import Bundle, Manifest
from sts_export.families.spec import ModelSpec
from sts_export.requests.generation_defaults import USUAL_SAMPLING, read_generation_defaults

_TENSORRT_TOPK = 3840
_ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}


def kv_bytes(model: ModelSpec, layers: int, rows: int, dtype: str) -> int:
    """Bytes of ``layers`` layers of keys and values with ``rows`` rows (docs/method.md, "Numbers to meet")."""
    return layers * 2 * model.decoder.num_kv_heads * model.decoder.head_dim * rows * _ITEM[dtype]


def summary(manifest: Manifest) -> str:
    """One line: what is pruned, and what the buffers hold."""
    pruning, capacities = manifest.pruning, manifest.capacities
    upto = "" if manifest.model.tower.is_fixed_size else "up to "
    return (
        f"{upto}{pruning.num_visual_tokens} visual tokens -> {pruning.keep_stage1} before the LLM -> "
        f"{pruning.keep_stage2} after layer {pruning.prune_layer} of {pruning.num_layers} (average {pruning.average:g}); "
        f"KV rows {capacities.lower} lower, {capacities.upper} upper"
    )


def adapter_note(manifest: Manifest) -> str | None:
    """Which adapter was merged into which model; None where none was."""
    merge = manifest.source.get("adapter")
    if merge is None:
        return None
    return (
        f"note: the LoRA adapter in {merge['folder']} was merged into {merge['tensors']} tensor(s) of {merge['base']}; "
        f"tokenizer and image processor are those in {merge['processor']}"
    )


def large_selection(manifest: Manifest) -> str | None:
    """A hint for pictures so large that choosing among their tokens is slow and beyond what TensorRT can sort."""
    pruning = manifest.pruning
    if max(pruning.keep_stage1, pruning.num_visual_tokens // 4) <= _TENSORRT_TOPK:
        return None
    return (
        f"note: pictures may have {pruning.num_visual_tokens} visual tokens, of which {pruning.keep_stage1} are kept: slow on "
        f"CPU, and TensorRT sorts at most {_TENSORRT_TOPK}; --max-visual-tokens makes them smaller"
    )


def ignored_settings(bundle: Bundle) -> str | None:
    """A hint for a checkpoint whose generation settings are not all followed."""
    ignored = read_generation_defaults(bundle.folder, bundle.manifest.model.decoder.vocab_size).ignored
    return f"note: generation settings of the checkpoint that are not followed: {', '.join(ignored)}" if ignored else None


def describe(bundle: Bundle, *, checked_engines: int | None = None) -> str:
    """Several lines for people; ``--json`` prints the manifest itself.

    Args:
        checked_engines: files of engines that were compared, in a bundle opened with ``check_all``; a line says so.
    """
    from sts_export.tensorrt.inventory import command_files, engine_lines

    manifest = bundle.manifest
    model, pruning, capacities = manifest.model, manifest.pruning, manifest.capacities
    decoder, layer = model.decoder, pruning.prune_layer
    lower = kv_bytes(model, layer, capacities.lower, manifest.dtype)
    upper = kv_bytes(model, decoder.num_layers - layer, capacities.upper, manifest.dtype)
    full_rows = capacities.prompt_tokens + capacities.visual_tokens + capacities.newline_rows + capacities.new_tokens
    full = kv_bytes(model, decoder.num_layers, full_rows, manifest.dtype)
    weights = sum(record.size for record in manifest.weights.files)
    where = f"linked from {manifest.weights.folder}" if manifest.weights.mode == "link" else "in the bundle"
    unused = "; ".join(f"{count} tensors: {reason}" for reason, count in manifest.unused_weights.items()) or "none"
    vision, dtype = model.vision, manifest.dtype
    quantized = f" with {manifest.quantization} weights" if manifest.quantization else ""
    tiles = f" in {len(model.tile_resolutions)} tilings" if model.tile_resolutions else ""
    newlines = f" + {capacities.newline_rows} newlines" if capacities.newline_rows else ""
    full_visual = kv_bytes(model, decoder.num_layers, pruning.num_visual_tokens, dtype)
    plain = "; ".join(f"{count} weights in float32: {reason}" for reason, count in manifest.unquantized_weights.items())
    lines = [
        ("model", f"{manifest.source['model']} ({model.family}), {dtype}{quantized}"),
        *([("adapter", note.removeprefix("note: "))] if (note := adapter_note(manifest)) else []),
        ("vision", f"{model.tower.num_layers} layers x {vision.hidden_size}, {pruning.num_visual_tokens} visual tokens{tiles}"),
        (
            "decoder",
            f"{decoder.num_layers} layers x {decoder.hidden_size}, {decoder.num_heads} heads, {decoder.num_kv_heads} KV",
        ),
        ("pruning", f"{pruning.method}: K = {pruning.keep_stage1}, K' = {pruning.keep_stage2} after layer {layer}"),
        ("budget", (pruning.budget or "explicit counts") + _small_image(bundle)),
        ("average", f"{pruning.average:g} visual tokens per decoder layer"),
        ("choices", f"anchor {pruning.anchor}, positions {pruning.positions}, score layer {pruning.score_layer}"),
        (
            "capacity",
            f"{capacities.prompt_tokens} prompt + {capacities.visual_tokens} visual (before pruning){newlines} + "
            f"{capacities.new_tokens} new tokens",
        ),
        ("KV rows", f"{capacities.lower} in the lower layers, {capacities.upper} in the upper ones"),
        ("KV cache", f"{_size(lower)} lower + {_size(upper)} upper; unpruned {_size(full)}"),
        ("visual KV", f"{_mebibytes(_visual_kv(bundle))}; unpruned {_mebibytes(full_visual)}"),
        ("weights", f"{_size(weights)} {where}; unused: {unused}" + (f"; {plain}" if plain else "")),
        ("graphs", ", ".join(f"{name} {_size(record.size)}" for name, record in manifest.graph_files.items())),
        ("made by", ", ".join(f"{name} {number}" for name, number in manifest.tools.items())),
    ]
    if settings := _generation(bundle):
        lines.append(("answers", settings))
    lines += [("engines", text) for text in engine_lines(bundle)]
    if commands := command_files(bundle):
        lines.append(("commands", ", ".join(commands)))
    if checked_engines is not None:
        lines.append(("checked", _checked(manifest, checked_engines)))
    return "\n".join(f"{label:<10}{text}" for label, text in lines)


def _generation(bundle: Bundle) -> str:
    """The checkpoint's own generation settings."""
    defaults = read_generation_defaults(bundle.folder, bundle.manifest.model.decoder.vocab_size)
    parts = [f"{name} {value}" for name, value in asdict(defaults.logits).items() if value is not None]
    if defaults.stop:
        parts.append(f"stop strings {', '.join(map(repr, defaults.stop))}")
    if defaults.new_tokens is not None:
        parts.append(f"max_new_tokens {defaults.new_tokens}")
    if defaults.sampling != USUAL_SAMPLING:
        sampled = [f"{name} {value:g}" for name, value in asdict(defaults.sampling).items() if value is not None]
        parts.append(f"with --sample {', '.join(sampled)}")
    if defaults.ignored:
        parts.append(f"not followed: {', '.join(defaults.ignored)}")
    return "; ".join(parts)


def _checked(manifest: Manifest, engines: int) -> str:
    """What ``open_bundle`` with ``check_all`` has compared, and engines; linked weights have no sha256."""
    records = (*manifest.graph_files.values(), *manifest.companions, *manifest.weights.files)
    hashed = sum(record.sha256 is not None for record in records)
    text = f"{hashed + engines} files were compared with their sha256 and agree"
    linked = len(records) - hashed
    return f"{text}; {linked} linked weight file(s) by header and samples" if linked else text


def _small_image(bundle: Bundle) -> str:
    """What happens to an image of a quarter of the largest one's tokens, where images differ."""
    pruning = bundle.manifest.pruning
    if bundle.manifest.model.tower.is_fixed_size:
        return ""
    size = max(1, pruning.num_visual_tokens // 4)
    keep1, keep2 = pruning.keeps(size)
    return f"; an image of {size} tokens: {keep1}, then {keep2}"


def _visual_kv(bundle: Bundle) -> int:
    manifest = bundle.manifest
    pruning, layers = manifest.pruning, manifest.model.decoder.num_layers
    return kv_bytes(manifest.model, pruning.prune_layer, pruning.keep_stage1, manifest.dtype) + kv_bytes(
        manifest.model, layers - pruning.prune_layer, pruning.keep_stage2, manifest.dtype
    )


def _mebibytes(nbytes: int) -> str:
    """The unit of the paper's table, whatever the size."""
    return f"{nbytes / 2**20:.6g} MiB"


def _size(nbytes: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024  # type: ignore[assignment]
    return f"{nbytes:.4g} GiB"
