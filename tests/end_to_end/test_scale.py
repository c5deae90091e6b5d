"""The public checkpoints at their true size: configurations as on the hub, weight files of the true shapes but full of holes.

Nothing here depends on a download.  What is measured (bytes read, memory) is no matter of how fast a machine is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from sts_export.bundle.manifest import open_bundle
from sts_export.checkpoints.checkpoint import open_checkpoint
from sts_export.testing.public_models import PUBLIC_MODELS, tensor_shapes, write_sparse_checkpoint
from tests.support.bundles import GRAPHS

# The smallest checkpoint has 7,000 MB; the libraries alone take 400 MB, more on machines with more cores.
MEGABYTES = 1000.0
# Run by itself, so that what is read and the memory are no other test's.
_EXPORT = """
import json, sys
from pathlib import Path
from sts_export.measuring.memory import peak_rss_mb
from sts_export.exporting.exporter import ExportRequest, export
export(ExportRequest(sys.argv[1], output=sys.argv[2], budget=sys.argv[3], weights="link"))
counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
print(json.dumps({"read_mb": int(counts["rchar"]) / 1e6, "rss_mb": peak_rss_mb()}))
"""
# hub id -> budget, and what docs/method.md and the model cards say: N, K, K', L, T
EXPECTED = {
    "llava-hf/llava-1.5-7b-hf": ("64", (576, 96, 32, 16, 32)),
    "llava-hf/llava-1.5-13b-hf": ("115.2", (576, 192, 64, 16, 40)),
    "llava-hf/llava-v1.6-vicuna-7b-hf": ("320", (2880, 480, 160, 16, 32)),
    "llava-hf/llava-v1.6-mistral-7b-hf": ("320", (2880, 480, 160, 16, 32)),
    "Qwen/Qwen2.5-VL-7B-Instruct": ("20%", (16384, 4916, 1638, 14, 28)),
    "Qwen/Qwen2.5-VL-3B-Instruct": ("10%", (16384, 2458, 819, 18, 36)),
}


@pytest.fixture(scope="module", params=list(EXPECTED))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("scale")
    checkpoint = write_sparse_checkpoint(folder / "checkpoint", request.param)
    command = [sys.executable, "-c", _EXPORT, str(checkpoint), str(folder / "bundle"), EXPECTED[request.param][0]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return request.param, checkpoint, folder / "bundle", json.loads(done.stdout)


def test_every_public_model_is_here() -> None:
    assert set(EXPECTED) == set(PUBLIC_MODELS)


def test_export_reads_no_weights(exported: tuple[str, Path, Path, dict[str, Any]]) -> None:
    _, _, _, measured = exported
    assert measured["read_mb"] < MEGABYTES  # read
    assert measured["rss_mb"] < MEGABYTES  # or mapped


def test_numbers_of_the_paper(exported: tuple[str, Path, Path, dict[str, Any]]) -> None:
    name, _, folder, _ = exported
    pruning = open_bundle(folder).manifest.pruning
    found = (pruning.num_visual_tokens, pruning.keep_stage1, pruning.keep_stage2, pruning.prune_layer, pruning.num_layers)
    assert found == EXPECTED[name][1]


def test_every_graph_is_valid(exported: tuple[str, Path, Path, dict[str, Any]]) -> None:
    """Checked, types and shapes inferred, and inference agrees with what the contract promises."""
    _, checkpoint, folder, _ = exported
    bundle = open_bundle(folder)
    for name in GRAPHS:
        # The checker wants the weight files beside the graph.
        beside = Path(shutil.copy(bundle.graph_file(name), checkpoint / f"{name}.onnx"))
        onnx.checker.check_model(beside)
        beside.unlink()
        model = onnx.load(bundle.graph_file(name), load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        outputs = {value.name: value.type.tensor_type for value in inferred.graph.output}
        for spec in bundle.manifest.graphs[name].outputs:
            dims = outputs[spec.name].shape.dim
            assert tuple(dim.dim_param or dim.dim_value for dim in dims) == spec.shape, (name, spec)


def test_weight_coverage_is_complete(exported: tuple[str, Path, Path, dict[str, Any]]) -> None:
    """Every tensor of the checkpoint is at its own place in a graph, or left out for a reason that the manifest counts."""
    name, checkpoint, folder, _ = exported
    bundle, stored = open_bundle(folder), open_checkpoint(checkpoint).tensors
    assert {tensor: entry.shape for tensor, entry in stored.items()} == tensor_shapes(name)
    places = {(entry.file.name, entry.offset): entry for entry in stored.values()}
    used = set()
    for graph in GRAPHS:
        model = onnx.load(bundle.graph_file(graph), load_external_data=False)
        for initializer in model.graph.initializer:
            if initializer.data_location != onnx.TensorProto.EXTERNAL:
                continue
            where = {item.key: item.value for item in initializer.external_data}
            entry = places[where["location"], int(where["offset"])]
            assert entry.name == initializer.name  # the hub's names are the graphs' names
            assert (entry.shape, entry.nbytes) == (tuple(initializer.dims), int(where["length"]))
            used.add(entry.name)
    assert len(used) + sum(bundle.manifest.unused_weights.values()) == len(stored)
