"""Checkpoint + pruning configuration -> bundle."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from sts_export.adapters.checks import check_mergeable, merge_record
from sts_export.adapters.opening import open_model
from sts_export.bundle import MANIFEST, QUANTIZATIONS, Bundle, FileRecord, Manifest, Weights, record_file, write_manifest
from sts_export.checkpoint import (
    Checkpoint,
    check_tokenizer,
    image_processor_kind,
    image_processor_settings,
    read_json,
)
from sts_export.dtypes import dtype_named
from sts_export.errors import BudgetError, CheckpointError, OutputError, RequestError
from sts_export.families import family_of
from sts_export.families.build import build
from sts_export.families.spec import Capacities, Graphs, ModelSpec
from sts_export.graphs.configs import ClipVisionConfig, Dtype
from sts_export.graphs.model import parameters
from sts_export.hub import locate_model
from sts_export.paths import user_path
from sts_export.pruning import METHODS, PruningConfig, config_for_budget, default_prune_layer
from sts_export.runtime.generation_defaults import read_generation_defaults
from sts_export.safetensors_header import TensorEntry
from sts_export.staging import staging
from sts_export.tied_head import resolve_head
from sts_export.weights import (
    COPY_FILE,
    Coverage,
    bind,
    copied_size,
    copy_weights,
    link_weights,
    match_weights,
    parameter_shapes,
    stored_dtype,
)

if TYPE_CHECKING:
    from sts_export.graphs.quantize import QuantizedWeight

DEFAULT_PROMPT_TOKENS = 512
DEFAULT_NEW_TOKENS = 512

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Args:
        model: alias, hub id or checkpoint folder; a LoRA adapter in it is merged, its base found if it lies elsewhere.
        output: bundle folder; None names it after model and budget.
        budget: average visual tokens per layer, ``"64"`` or ``"20%"``; exclusive with ``keep``.
        keep: explicit (K, K').
        choices: anchor, positions, score_layer, epsilon, as in PruningConfig.
        dtype: float32, float16 or bfloat16, or fp32, fp16, bf16; None keeps the checkpoint's.
        quantize: ``int8`` or ``int4`` weights for ONNX Runtime's CPU provider, computed in float32; None leaves them alone.
        weights: ``copy`` into the bundle, or ``link`` to the checkpoint's files.
        max_prompt_tokens, max_new_tokens: capacity for text (without visual tokens) and for generated tokens.
        max_visual_tokens: capacity for visual tokens of a prompt before pruning, all images; None: one largest image.  In
            families that take any resolution, larger pictures are made smaller until they fit.
    """

    model: str
    output: str | Path | None = None
    budget: str | None = None
    keep: tuple[int, int] | None = None
    method: str = "sts"
    prune_layer: int | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    quantize: str | None = None
    weights: Literal["copy", "link"] = "copy"
    max_prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    max_visual_tokens: int | None = None
    force: bool = False


def export(request: ExportRequest, progress: Progress | None = None) -> Bundle:
    """Write the bundle; nothing is left behind if it fails.

    ``progress(done, total)`` is told of the bytes of weights copied.

    Raises:
        RequestError: and its children, for everything that can be wrong with the request.
    """
    if request.weights not in ("copy", "link"):
        raise RequestError(f"unknown weights mode {request.weights!r}: choose copy or link")
    _check_quantization(request)
    checkpoint = open_model(locate_model(request.model))
    family = family_of(checkpoint.config)
    spec, processor = read_spec(request, checkpoint)
    if checkpoint.adapter is not None:
        check_mergeable(checkpoint.adapter, spec, family.names, linked=request.weights == "link")
    pruning = plan_pruning(request, spec)
    capacities = plan_capacities(request, spec, pruning)
    output = _output_folder(request, pruning)
    _check_output(output, checkpoint, force=request.force)

    dtype = _dtype(request, checkpoint)
    spec, canonical_name = resolve_head(checkpoint, family, spec)
    graphs = build(spec, family.names, pruning, capacities, dtype)
    shapes = parameter_shapes(graphs.models, parameters)
    coverage = match_weights(shapes, checkpoint, canonical_name, lambda name: family.unused_reason(name, spec))
    quantized, kept_float = _quantize(graphs, request.quantize)
    with staging(output) as folder:
        weights, placed = _store_weights(request, checkpoint, coverage, quantized, dtype, folder, progress)
        graph_files = {name: _save_graph(graphs, name, placed, folder) for name in graphs.models}
        manifest = Manifest(
            tools={name: version(name) for name in ("sts-export", "onnx", "onnxscript", "onnx-ir")},
            source=_identity(request, checkpoint),
            model=spec,
            pruning=pruning,
            dtype=dtype,
            quantization=request.quantize,
            capacities=capacities,
            graphs=graphs.contracts,
            graph_files=graph_files,
            weights=weights,
            companions=_copy_companions(checkpoint, processor, folder),
            unused_weights=coverage.unused,
            unquantized_weights=kept_float,
        )
        write_manifest(folder, manifest)
    return Bundle(output, manifest)


def read_spec(request: ExportRequest, checkpoint: Checkpoint) -> tuple[ModelSpec, dict[str, Any]]:
    """The model's dimensions and image processor settings, with images no larger than the request allows.

    Raises:
        CheckpointError: an architecture, processor or tokenizer that cannot be exported, or wrong generation settings.
        RequestError: max_visual_tokens is not positive.
    """
    family = family_of(checkpoint.config)
    check_tokenizer(checkpoint)
    settings, source = image_processor_settings(checkpoint.processor_folder)
    kind = image_processor_kind(settings, source)
    if kind not in family.image_processors:
        raise CheckpointError(
            f"{source} asks for {kind}, but {checkpoint.config['model_type']} models have {family.image_processors[0]}; "
            "use the processor files of this model"
        )
    most = request.max_visual_tokens
    if most is not None and most < 1:
        raise RequestError(f"--max-visual-tokens {most} must be at least 1")
    spec = family.parse(checkpoint.config, settings)
    family.check_processor(checkpoint, settings, spec)
    read_generation_defaults(checkpoint.folder, spec.decoder.vocab_size)  # the runtime will need valid ones
    if family.limit_tokens is not None and most is not None and most < spec.max_image_tokens:
        settings = family.limit_tokens(settings, most, spec)
        spec = replace(family.parse(checkpoint.config, settings), max_image_tokens=most)
    return spec, settings


def plan_pruning(request: ExportRequest, spec: ModelSpec) -> PruningConfig:
    """The pruning configuration that the request means for this model.

    Raises:
        BudgetError: neither or both of budget and keep, unknown method, impossible numbers.
    """
    visual, layers = spec.max_image_tokens, spec.decoder.num_layers
    choices = {"positions": "keep" if spec.decoder.mrope_section else "reindex", **request.choices}
    if choices.get("anchor") == "saliency" and not isinstance(spec.vision, ClipVisionConfig):
        raise BudgetError(f"anchor saliency needs a CLS token, which {spec.family} has not: choose mean or first")
    if (request.budget is None) == (request.keep is None):
        raise BudgetError("give either a budget (--budget 64) or explicit counts (--keep 96,32)")
    if layers < 2:
        raise BudgetError(f"a decoder of {layers} layer cannot be split; pruning inside the LLM needs at least 2")
    if request.budget is not None:
        return config_for_budget(
            request.budget,
            num_visual_tokens=visual,
            num_layers=layers,
            prune_layer=request.prune_layer,
            method=request.method,
            **choices,
        )
    if request.method not in METHODS:
        raise BudgetError(f"unknown method {request.method!r}: choose one of {', '.join(METHODS)}")
    layer = default_prune_layer(layers) if request.prune_layer is None else request.prune_layer
    keep1, keep2 = cast("tuple[int, int]", request.keep)
    return PruningConfig(visual, layers, layer, keep1, keep2, cast("Any", request.method), **choices)


def plan_capacities(request: ExportRequest, spec: ModelSpec, pruning: PruningConfig) -> Capacities:
    """Cache rows of lower and upper part.

    Raises:
        RequestError: not positive, or beyond the decoder's position limit.
    """
    text, new = request.max_prompt_tokens, request.max_new_tokens
    if text < 1 or new < 1:
        raise RequestError(f"--max-prompt-tokens {text} and --max-new-tokens {new} must be at least 1")
    visual = request.max_visual_tokens or 0
    plan = Capacities.plan(spec, pruning, prompt_tokens=text, new_tokens=new, visual_tokens=visual)
    most = max(plan.lower, plan.positions)
    if most > spec.max_positions:
        raise RequestError(
            f"{text} prompt + {most - text - new} visual + {new} new tokens exceed {spec.max_positions} "
            "positions; lower --max-prompt-tokens, --max-new-tokens, --max-visual-tokens or the budget"
        )
    return plan


def _check_quantization(request: ExportRequest) -> None:
    """Quantized graphs are float32 around their weights, and have weights that no checkpoint has."""
    if request.quantize is None:
        return
    if request.quantize not in QUANTIZATIONS:
        raise RequestError(f"unknown quantization {request.quantize!r}: choose one of {', '.join(QUANTIZATIONS)}")
    if request.weights == "link":
        raise RequestError("--weights link cannot quantize: use --weights copy")
    if request.dtype is not None and dtype_named(request.dtype) != "float32":
        raise RequestError(f"--quantize computes in float32: leave out --dtype {request.dtype}")


def _quantize(graphs: Graphs, name: str | None) -> tuple[list[QuantizedWeight], dict[str, int]]:
    """Rewrite the graphs; returns the new weights, and how many stay in float32 for which reason."""
    if name is None:
        return [], {}
    from sts_export.graphs.quantize import SCHEMES, chooser, quantize

    scheme = SCHEMES[name]
    done = [
        quantize(model, chooser(scheme, wide=graph in ("vision_encoder", "selector"))) for graph, model in graphs.models.items()
    ]
    reasons = {weight: reason for result in done for weight, reason in result.kept.items()}
    return [weight for result in done for weight in result.weights], dict(Counter(reasons.values()))


def _dtype(request: ExportRequest, checkpoint: Checkpoint) -> Dtype:
    return dtype_named(request.dtype or ("float32" if request.quantize else stored_dtype(checkpoint.own_tensors())))


def _output_folder(request: ExportRequest, pruning: PruningConfig) -> Path:
    if request.output is not None:
        return user_path(request.output)
    stem = Path(os.path.abspath(request.model)).name
    tail = (
        f"b{request.budget.strip().replace('%', 'pct')}" if request.budget else f"k{pruning.keep_stage1}-{pruning.keep_stage2}"
    )
    return Path("-".join(part for part in (stem, tail, request.choices.get("positions"), request.quantize) if part))


def _check_output(output: Path, checkpoint: Checkpoint, *, force: bool) -> None:
    """Refuse what must not be replaced, before any work is done."""
    if not output.exists():
        return
    if not force:
        raise OutputError(f"{output} exists; choose another --output or replace it with --force")
    if not _is_bundle(output) and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(f"{output} exists and is not a bundle, so --force does not replace it; remove it yourself")
    if any(folder.is_relative_to(output.resolve()) for folder in (checkpoint.folder, checkpoint.given)):
        raise OutputError(f"{output} holds the checkpoint itself, so --force does not replace it; choose another --output")


def _is_bundle(folder: Path) -> bool:
    """Whether the manifest is one of ours: other programs have a manifest.json too."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and {"schema_version", "pruning", "graphs", "weights"} <= manifest.keys()


def _store_weights(
    request: ExportRequest,
    checkpoint: Checkpoint,
    coverage: Coverage,
    quantized: list[QuantizedWeight],
    dtype: Dtype,
    folder: Path,
    progress: Progress | None,
) -> tuple[Weights, dict[str, TensorEntry]]:
    if request.weights == "link":
        source, placed = link_weights(coverage, dtype)
        files = sorted({entry.file for entry in placed.values()})
        records = tuple(FileRecord(file.name, file.stat().st_size, fingerprint=checkpoint.shards[file]) for file in files)
        return Weights("link", records, str(source)), placed
    total, done = copied_size(coverage, dtype, quantized), 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    placed, digest = copy_weights(coverage, dtype, folder, count, quantized)
    record = FileRecord(COPY_FILE, (folder / COPY_FILE).stat().st_size, digest)
    return Weights("copy", (record,)), placed


def _save_graph(graphs: Graphs, name: str, placed: dict[str, TensorEntry], folder: Path) -> FileRecord:
    import onnx_ir as ir

    model = graphs.models[name]
    bind(parameters(model), placed)
    file = folder / f"{name}.onnx"
    file.write_bytes(ir.to_proto(model).SerializeToString())
    return record_file(file)


def _copy_companions(checkpoint: Checkpoint, settings: dict[str, Any], folder: Path) -> tuple[FileRecord, ...]:
    """Tokenizer and processor files; the image processor's with these settings."""
    files = [Path(shutil.copy(file, folder / file.name)) for file in checkpoint.companions()]
    copied, source = image_processor_settings(folder)
    if copied != settings:
        content = read_json(source)
        content = {**content, "image_processor": settings} if "image_processor" in content else settings
        source.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return tuple(record_file(file) for file in files)


def _identity(request: ExportRequest, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the bundle was made from, so that `verify` finds it again and a reader can tell two apart."""
    return {
        "model": request.model,
        "folder": str(checkpoint.given),
        **merge_record(checkpoint),
        "config_sha256": record_file(checkpoint.folder / "config.json").sha256,
        "weights": {file.name: digest for file, digest in checkpoint.shards.items()},
    }
