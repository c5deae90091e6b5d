"""Checkpoint + pruning configuration -> bundle."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sts_export.adapters.checks import check_mergeable, unused_files
from sts_export.adapters.opening import open_model
from sts_export.bundle.manifest import MANIFEST, Bundle, Manifest, write_manifest
from sts_export.bundle.records import FileRecord, MergedAdapter, SelectorSource, Source, Weights, record_file
from sts_export.checkpoints.checkpoint import Checkpoint, image_processor_settings, read_json
from sts_export.checkpoints.safetensors_header import TensorEntry
from sts_export.checkpoints.selector_weights import SelectorWeights
from sts_export.dtypes import QUANTIZATIONS, Quantization, dtype_named
from sts_export.errors import OutputError, RequestError
from sts_export.exporting.plan import ExportPlan, ExportRequest, plan_export
from sts_export.exporting.preflight import check_inputs
from sts_export.exporting.staging import remove_abandoned, staging
from sts_export.exporting.tied_head import resolve_head
from sts_export.exporting.weights import (
    COPY_FILE,
    Coverage,
    bind,
    copied_size,
    copy_weights,
    embed,
    link_weights,
    match_weights,
    parameter_shapes,
    stored_dtype,
)
from sts_export.families import family_of
from sts_export.families.build import build
from sts_export.families.spec import Graphs
from sts_export.graphs.configs import Dtype
from sts_export.graphs.model import parameters
from sts_export.hub import locate_model
from sts_export.paths import library_path
from sts_export.pruning.config import PruningConfig

if TYPE_CHECKING:
    from sts_export.lowering.quantized_graphs import QuantizedWeight

__all__ = ["ByteProgress", "ExportRequest", "Note", "export"]

ByteProgress = Callable[[int, int], None]
Note = Callable[[str], None]


def export(request: ExportRequest, progress: ByteProgress | None = None, note: Note | None = None) -> Bundle:
    """Write the bundle; nothing is left behind if it fails.

    ``progress(done, total)`` is told of the bytes of weights copied, ``note(line)`` of what was chosen smaller than by
    default, before anything is written.

    Raises:
        RequestError: and its children, for everything that can be wrong with the request.
    """
    if request.weights not in ("copy", "link"):
        raise RequestError(f"unknown weights mode {request.weights!r}: choose copy or link")
    _check_quantization(request)
    checkpoint = open_model(locate_model(request.model))
    family = family_of(checkpoint.config)
    plan = plan_export(request, checkpoint)
    spec, pruning, capacities = plan.model, plan.pruning, plan.capacities
    if checkpoint.adapter is not None:
        check_mergeable(checkpoint.adapter, spec, family.names, linked=request.weights == "link")
    output = _output_folder(request, pruning)
    remove_abandoned(output)
    _check_output(output, checkpoint, plan.selector, force=request.force)
    dtype = _dtype(request, checkpoint)
    notes = (*plan.notes, *check_inputs(checkpoint, plan))
    if unused := unused_files(checkpoint):
        notes += (
            f"note: not used beside the adapter, for want of an image processor there (copy the base's): {', '.join(unused)}",
        )
    if note is not None:
        for line in notes:
            note(line)

    spec, canonical_name = resolve_head(checkpoint, family, spec)
    graphs = build(spec, family.names, pruning, capacities, dtype)
    shapes = parameter_shapes(graphs.models, parameters)
    stored = {} if plan.selector is None else plan.selector.tensors
    own = {name: entry for name, entry in stored.items() if name in shapes}
    # A tensor of the checkpoint with such a name is not what is meant.
    shapes = {name: shape for name, shape in shapes.items() if name not in own}
    coverage = match_weights(shapes, checkpoint, canonical_name, lambda name: family.unused_reason(name, spec))
    coverage = replace(coverage, own=own)
    quantized, kept_float = _quantize(graphs, request.quantize, own)
    with staging(output, replace=request.force) as folder:
        weights, placed = _store_weights(request, checkpoint, plan, coverage, quantized, dtype, folder, progress)
        apart = {name: entry for name, entry in own.items() if name not in placed}
        for model in graphs.models.values():
            embed(parameters(model), apart)
        graph_files = {name: _save_graph(graphs, name, placed, folder) for name in graphs.models}
        manifest = Manifest(
            tools={name: version(name) for name in ("sts-export", "onnx", "onnxscript", "onnx-ir")},
            source=_source(request, checkpoint, plan.selector),
            model=spec,
            pruning=pruning,
            dtype=dtype,
            quantization=cast("Quantization | None", request.quantize),
            capacities=capacities,
            graphs=graphs.contracts,
            graph_files=graph_files,
            weights=weights,
            companions=_copy_companions(checkpoint, plan.image_settings, folder),
            unused_weights=coverage.unused,
            unquantized_weights=kept_float,
        )
        write_manifest(folder, manifest)
    return Bundle(output, manifest)


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


def _quantize(graphs: Graphs, name: str | None, own: Collection[str]) -> tuple[list[QuantizedWeight], dict[str, int]]:
    """Rewrite the graphs but for their ``own`` weights; returns the new ones, and how many stay in float32 for which reason."""
    if name is None:
        return [], {}
    from sts_export.lowering.quantized_graphs import SCHEMES, Form, chooser, quantize

    def form(weight: str, graph: str) -> Form | None:
        return None if weight in own else chooser(SCHEMES[name], wide=graph in ("vision_encoder", "selector"))(weight)

    done = [quantize(model, partial(form, graph=graph)) for graph, model in graphs.models.items()]
    reasons = {weight: reason for result in done for weight, reason in result.kept.items()}
    reasons |= dict.fromkeys(own, "a trained selector's")
    return [weight for result in done for weight in result.weights], dict(Counter(reasons.values()))


def _dtype(request: ExportRequest, checkpoint: Checkpoint) -> Dtype:
    return dtype_named(request.dtype or ("float32" if request.quantize else stored_dtype(checkpoint.own_tensors())))


def _output_folder(request: ExportRequest, pruning: PruningConfig) -> Path:
    if request.output is not None:
        return library_path(request.output)
    stem = Path(os.path.abspath(request.model)).name
    tail = (
        f"b{''.join(request.budget.split()).replace('%', 'pct')}"
        if request.budget
        else f"k{pruning.keep_stage1}-{pruning.keep_stage2}"
    )
    name = "-".join(part for part in (stem, tail, request.choices.get("positions"), request.quantize) if part)
    library_path(os.path.abspath(name))  # the folder that it is in
    return Path(name)


def _check_output(output: Path, checkpoint: Checkpoint, selector: SelectorWeights | None, *, force: bool) -> None:
    """Refuse what must not be replaced, before any work is done."""
    if not output.exists():
        return
    if not force:
        raise OutputError(f"{output} exists; choose another --output or replace it with --force")
    if not _is_bundle(output) and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(f"{output} exists and is not a bundle, so --force does not replace it; remove it yourself")
    if any(folder.is_relative_to(output.resolve()) for folder in (checkpoint.folder, checkpoint.given)):
        raise OutputError(f"{output} holds the checkpoint itself, so --force does not replace it; choose another --output")
    if selector is not None and selector.file.is_relative_to(output.resolve()):
        raise OutputError(f"{output} holds the selector's weights, so --force does not replace it; choose another --output")


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
    plan: ExportPlan,
    coverage: Coverage,
    quantized: list[QuantizedWeight],
    dtype: Dtype,
    folder: Path,
    progress: ByteProgress | None,
) -> tuple[Weights, dict[str, TensorEntry]]:
    if request.weights == "link":
        source, placed = link_weights(coverage, dtype)
        files = sorted({entry.file for entry in placed.values()})
        shards = checkpoint.shards if plan.selector is None else {plan.selector.file: plan.selector.header, **checkpoint.shards}
        records = tuple(FileRecord(file.name, file.stat().st_size, fingerprint=shards[file]) for file in files)
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
    companions = checkpoint.companions()
    for name, file in companions.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(file, folder / name)
    copied, source = image_processor_settings(folder)
    if copied != settings:
        content = read_json(source)
        content = {**content, "image_processor": settings} if "image_processor" in content else settings
        source.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return tuple(record_file(folder / name, folder) for name in companions)


def _source(request: ExportRequest, checkpoint: Checkpoint, selector: SelectorWeights | None) -> Source:
    """What the bundle was made from, so that `verify` finds it again and a reader can tell two apart."""
    config = record_file(checkpoint.folder / "config.json")
    weights = {file.name: digest for file, digest in checkpoint.shards.items()}
    own = None if selector is None else SelectorSource(str(selector.file), selector.sha256)
    return Source(request.model, str(checkpoint.given), str(config.sha256), weights, _merged(checkpoint), own)


def _merged(checkpoint: Checkpoint) -> MergedAdapter | None:
    """The adapter that was merged into the checkpoint's weights."""
    adapter = checkpoint.adapter
    if adapter is None:
        return None
    return MergedAdapter(str(adapter.folder), str(checkpoint.folder), len(adapter.targets), str(checkpoint.processor_folder))
