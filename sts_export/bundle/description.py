"""A bundle in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sts_export.bundle.manifest import Bundle, Manifest
from sts_export.families.capacities import cache_bytes, kv_bytes
from sts_export.pruning.settings import describe_stage
from sts_export.requests.generation_defaults import USUAL_SAMPLING, read_generation_defaults

_TENSORRT_TOPK = 3840
Line = tuple[str, str]  # a label, and what is said of it


def summary(manifest: Manifest) -> str:
    """One line: what is pruned, and what the buffers hold."""
    pruning, capacities = manifest.pruning, manifest.capacities
    upto = "" if manifest.model.tower.is_fixed_size else "up to "
    return (
        f"{upto}{pruning.num_visual_tokens} visual tokens -> {pruning.keep_stage1} before the LLM -> "
        f"{pruning.keep_stage2} after layer {pruning.prune_layer} of {pruning.num_layers} (average {pruning.average:g}); "
        f"KV rows {', '.join(f'{rows} {part.label}' for part, rows in zip(pruning.parts, capacities.rows, strict=True))}"
    )


def adapter_note(manifest: Manifest) -> str | None:
    """Which adapter was merged into which model; None where none was."""
    merge = manifest.source.adapter
    if merge is None:
        return None
    return (
        f"note: the LoRA adapter in {merge.folder} was merged into {merge.tensors} tensor(s) of {merge.base}; "
        f"tokenizer and image processor are those in {merge.processor}"
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


def describe(bundle: Bundle) -> list[Line]:
    """What the manifest says, for people; ``--json`` prints the manifest itself."""
    manifest = bundle.manifest
    model, pruning, capacities = manifest.model, manifest.pruning, manifest.capacities
    decoder, parts = model.decoder, pruning.parts
    caches = cache_bytes(model, pruning, capacities, manifest.dtype)
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
    lines: list[Line] = [
        ("model", f"{manifest.source.model} ({model.family}), {dtype}{quantized}"),
        *([("adapter", note.removeprefix("note: "))] if (note := adapter_note(manifest)) else []),
        ("vision", f"{model.tower.num_layers} layers x {vision.hidden_size}, {pruning.num_visual_tokens} visual tokens{tiles}"),
        (
            "decoder",
            f"{decoder.num_layers} layers x {decoder.hidden_size}, {decoder.num_heads} heads, {decoder.num_kv_heads} KV",
        ),
        (
            "pruning",
            f"{pruning.method}: K = {pruning.keep_stage1}, K' = {pruning.keep_stage2} after layer {pruning.prune_layer}",
        ),
        ("budget", (pruning.budget or "explicit counts") + _small_image(bundle)),
        ("average", f"{pruning.average:g} visual tokens per decoder layer"),
        ("stage 1", describe_stage(pruning.stage1)),
        *([("selector", f"weights from {own.file}")] if (own := manifest.source.selector) else []),
        ("stage 2", describe_stage(pruning.stage2)),
        ("positions", pruning.positions),
        (
            "capacity",
            f"{capacities.prompt_tokens} prompt + {capacities.visual_tokens} visual (before pruning){newlines} + "
            f"{capacities.new_tokens} new tokens",
        ),
        ("KV rows", _rows_of_layers(manifest)),
        (
            "KV cache",
            " + ".join(f"{_size(nbytes)} {part.label}" for part, nbytes in zip(parts, caches, strict=True))
            + f"; unpruned {_size(full)}",
        ),
        ("visual KV", f"{_mebibytes(_visual_kv(bundle))}; unpruned {_mebibytes(full_visual)}"),
        ("weights", f"{_size(weights)} {where}; unused: {unused}" + (f"; {plain}" if plain else "")),
        ("graphs", ", ".join(f"{name} {_size(record.size)}" for name, record in manifest.graph_files.items())),
        ("made by", ", ".join(f"{name} {number}" for name, number in manifest.tools.items())),
    ]
    if settings := _generation(bundle):
        lines.append(("answers", settings))
    return lines


def as_text(lines: Sequence[Line]) -> str:
    """One below the other, with the texts in a column."""
    return "\n".join(f"{label:<10}{text}" for label, text in lines)


def _rows_of_layers(manifest: Manifest) -> str:
    first, *others = ((rows, part.label) for part, rows in zip(manifest.pruning.parts, manifest.capacities.rows, strict=True))
    return ", ".join(["{} in the {} layers".format(*first), *("{} in the {} ones".format(*other) for other in others)])


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


def checked(manifest: Manifest, engines: int) -> Line:
    """What ``open_bundle`` with ``check_all`` has compared, and engines; linked weights have no sha256.

    Args:
        engines: their files that were compared.
    """
    records = (*manifest.graph_files.values(), *manifest.companions, *manifest.weights.files)
    hashed = sum(record.sha256 is not None for record in records)
    text = f"{hashed + engines} files were compared with their sha256 and agree"
    linked = len(records) - hashed
    return "checked", f"{text}; {linked} linked weight file(s) by header and samples" if linked else text


def _small_image(bundle: Bundle) -> str:
    """What happens to an image of a quarter of the largest one's tokens, where images differ."""
    pruning = bundle.manifest.pruning
    if bundle.manifest.model.tower.is_fixed_size:
        return ""
    size = max(1, pruning.num_visual_tokens // 4)
    return f"; an image of {size} tokens: {', then '.join(map(str, pruning.keeps(size)))}"


def _visual_kv(bundle: Bundle) -> int:
    """Bytes of the largest image's kept tokens in all layers."""
    manifest, pruning = bundle.manifest, bundle.manifest.pruning
    kept = pruning.keeps(pruning.num_visual_tokens)
    return sum(
        kv_bytes(manifest.model, len(part.layers), rows, manifest.dtype) for part, rows in zip(pruning.parts, kept, strict=True)
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
