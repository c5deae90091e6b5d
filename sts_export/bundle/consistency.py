"""Whether a manifest that can be read makes sense: what the runtime relies on without looking again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sts_export.bundle.document import ManifestDocument
from sts_export.families import families
from sts_export.families.build import contracts
from sts_export.families.capacities import Capacities


def contradiction(manifest: ManifestDocument) -> str | None:
    """Path of the first value that contradicts another one, and why; None where all fit together."""
    return next(_contradictions(manifest), None)


def _contradictions(manifest: ManifestDocument) -> Iterator[str]:
    model, pruning, capacities, weights = manifest.model, manifest.pruning, manifest.capacities, manifest.weights
    if model.family not in families():
        yield f"$.model.family: {model.family!r} is unknown"
        return
    if pruning.num_visual_tokens != model.max_image_tokens:
        yield f"$.pruning.num_visual_tokens: the model has {model.max_image_tokens}"
    if pruning.num_layers != model.decoder.num_layers:
        yield f"$.pruning.num_layers: the decoder has {model.decoder.num_layers}"
    if manifest.quantization is not None and manifest.dtype != "float32":
        yield f"$.dtype: weights in {manifest.quantization} are of a float32 model"
    planned = Capacities.plan(
        model,
        pruning,
        prompt_tokens=capacities.prompt_tokens,
        new_tokens=capacities.new_tokens,
        visual_tokens=capacities.visual_tokens,
    )
    if capacities != planned:
        yield "$.capacities: not the rows that model and pruning make of these tokens"
        return
    expected = contracts(model, pruning, capacities, manifest.dtype)
    if list(manifest.graphs) != list(expected):
        yield f"$.graphs: not {', '.join(expected)}"
        return
    for name, contract in expected.items():
        graph = manifest.graphs[name]
        if (graph.inputs, graph.outputs, graph.caches) != (contract.inputs, contract.outputs, contract.caches):
            yield f"$.graphs.{name}: other inputs, outputs or caches than those of this model"
    if bool(pruning.stage1.own_weights(model.tower.width)) != (manifest.source.selector is not None):
        yield f"$.source.selector: {'none' if manifest.source.selector else 'needed'} with stage 1 {pruning.stage1.name}"
    yield from _file_contradictions(manifest)
    if not weights.files:
        yield "$.weights.files: empty"
    if (weights.folder is None) != (weights.mode == "copy"):
        yield f"$.weights.folder: {'needed' if weights.folder is None else 'none'} with mode {weights.mode}"


def _file_contradictions(manifest: ManifestDocument) -> Iterator[str]:
    graphs = {f"$.graphs.{name}": record for name, record in manifest.graphs.items()}
    weights = {f"$.weights.files[{place}]": record for place, record in enumerate(manifest.weights.files)}
    companions = {f"$.companions[{place}]": record for place, record in enumerate(manifest.companions)}
    for path, record in {**graphs, **weights, **companions}.items():
        lies_right = _lies_below(record.file) if path in companions else Path(record.file).name == record.file
        if not lies_right:
            yield f"{path}.file: {record.file!r} is no name of a file in the folder"
        if (record.sha256 is None) == (record.fingerprint is None):
            yield f"{path}: either sha256 or fingerprint"


def _lies_below(name: str) -> bool:
    """Whether a file of this name lies in the bundle's folder or in one below it."""
    return all(part != ".." and Path(part).name == part != "" for part in name.split("/"))
