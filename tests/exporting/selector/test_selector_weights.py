"""Bundles with a trained selector: where its weights go, who says what they are, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from safetensors.torch import load_file, save_file

from sts_export.bundle.description import describe
from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.demo import MODEL_DIR, SELECTORS
from sts_export.errors import BundleError, CheckpointError, OutputError, RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.exporting.weights import COPY_FILE
from sts_export.source_reference import selector_file
from sts_export.testing.checkpoints import RandomLlava, write_random_llava, write_random_selector
from tests.exporting.helpers import files, request

WIDTH = RandomLlava().vision_width
NAMES = [f"selector.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]


@pytest.fixture(scope="module")
def selector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_selector(tmp_path_factory.mktemp("selector") / "selector.safetensors", WIDTH)


def learned(checkpoint: Path, output: Path, selector: Path, **options: Any) -> Bundle:
    return export(request(checkpoint, output, **{"stage1": "learned", "selector_weights": selector, **options}))


def own_weights(bundle: Bundle) -> dict[str, onnx.TensorProto]:
    """The selector's own initializers, wherever their data are."""
    graph = onnx.load(bundle.graph_file("selector"), load_external_data=False).graph
    return {item.name: item for item in graph.initializer if item.name in NAMES}


def value(item: onnx.TensorProto, folder: Path) -> np.ndarray[Any, Any]:
    return np.asarray(onnx.numpy_helper.to_array(item, str(folder)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_copied_in_float32(checkpoint: Path, selector: Path, tmp_path: Path, dtype: str) -> None:
    bundle = learned(checkpoint, tmp_path / "bundle", selector, dtype=dtype)
    stored, given = load_file(bundle.folder / COPY_FILE), load_file(selector)
    assert set(NAMES) < set(stored)
    for name, item in own_weights(bundle).items():
        assert stored[name].dtype == torch.float32 and torch.equal(stored[name], given[name])
        assert item.data_location == onnx.TensorProto.EXTERNAL and item.data_type == onnx.TensorProto.FLOAT
        np.testing.assert_array_equal(value(item, bundle.folder), given[name].numpy())
    source = bundle.manifest.source.selector
    assert source is not None and source.file == str(selector.resolve())
    assert source.sha256 == hashlib.sha256(selector.read_bytes()).hexdigest()
    assert open_bundle(bundle.folder, check_all=True) == bundle
    assert ("selector", f"weights from {selector.resolve()}") in describe(bundle)


def test_narrower_weights_become_float32(checkpoint: Path, tmp_path: Path) -> None:
    file = write_random_selector(tmp_path / "half.safetensors", WIDTH, dtype=torch.float16)
    bundle = learned(checkpoint, tmp_path / "bundle", file)
    stored, given = load_file(bundle.folder / COPY_FILE), load_file(file)
    assert all(torch.equal(stored[name], given[name].float()) for name in NAMES)


def test_linked_from_another_folder(checkpoint: Path, selector: Path, tmp_path: Path) -> None:
    """External data lie in one folder, the checkpoint's: these go into the graph."""
    bundle = learned(checkpoint, tmp_path / "bundle", selector, weights="link")
    assert {record.file for record in bundle.manifest.weights.files} == {file.name for file in checkpoint.glob("*.safetensors")}
    given = load_file(selector)
    for name, item in own_weights(bundle).items():
        assert item.data_location == onnx.TensorProto.DEFAULT
        np.testing.assert_array_equal(value(item, bundle.folder), given[name].numpy())
    assert len(own_weights(bundle)) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_linked_where_the_checkpoint_lies(tmp_path: Path, dtype: torch.dtype) -> None:
    """Linked as well, if they are float32; others would have to be converted."""
    source = write_random_llava(tmp_path / "source", RandomLlava(layers=2, vision_layers=2))
    file = write_random_selector(source / "keep.safetensors", WIDTH, dtype=dtype)
    bundle = learned(source, tmp_path / "bundle", file, weights="link")
    linked = dtype == torch.float32
    assert ("keep.safetensors" in {record.file for record in bundle.manifest.weights.files}) == linked
    where = onnx.TensorProto.EXTERNAL if linked else onnx.TensorProto.DEFAULT
    assert {item.data_location for item in own_weights(bundle).values()} == {where}
    for name, item in own_weights(bundle).items():
        np.testing.assert_array_equal(value(item, source), load_file(file)[name].float().numpy())
    assert "keep.safetensors" not in bundle.manifest.source.weights
    if linked:
        write_random_selector(file, WIDTH, seed=1)
        with pytest.raises(BundleError, match="was altered since the export that links to it"):
            open_bundle(bundle.folder)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_never_quantized(checkpoint: Path, selector: Path, tmp_path: Path, scheme: str) -> None:
    bundle = learned(checkpoint, tmp_path / "bundle", selector, quantize=scheme)
    assert set(own_weights(bundle)) == set(NAMES)
    assert bundle.manifest.unquantized_weights["a trained selector's"] == 4


def test_a_tensor_of_the_checkpoint_is_not_taken(selector: Path, tmp_path: Path) -> None:
    """Its names are the selector's: the checkpoint is not of this architecture, whatever its values."""
    source = write_random_llava(tmp_path / "source", RandomLlava(layers=2, vision_layers=2))
    file = source / "model.safetensors"
    save_file({**load_file(file), **load_file(selector)}, file)
    with pytest.raises(CheckpointError, match=r"the graphs would not use selector.linear_1.bias"):
        learned(source, tmp_path / "bundle", selector)


def test_a_stage_that_is_left_out_stores_nothing(checkpoint: Path, selector: Path, tmp_path: Path) -> None:
    bundle = learned(checkpoint, tmp_path / "bundle", selector, budget=None, keep=(36, 12))
    assert not own_weights(bundle) and not set(NAMES) & set(load_file(bundle.folder / COPY_FILE))
    assert bundle.manifest.source.selector is not None and open_bundle(bundle.folder) == bundle


@pytest.mark.parametrize("stage1", ["learned", "repulsion"])
def test_needed_or_of_no_use(checkpoint: Path, selector: Path, tmp_path: Path, stage1: str) -> None:
    given, expected = (
        (None, "stage 1 learned has weights of its own: give them with --selector-weights FILE.safetensors")
        if stage1 == "learned"
        else (selector, "stage 1 repulsion has no weights of its own: leave out --selector-weights")
    )
    with pytest.raises(RequestError) as caught:
        export(request(checkpoint, tmp_path / "bundle", stage1=stage1, selector_weights=given))
    assert expected in str(caught.value) and files(tmp_path) == {}


def test_the_demo_model_has_its_own(tmp_path: Path) -> None:
    bundle = export(ExportRequest("demo", tmp_path / "bundle", "64", method="learnpruner", weights="link"))
    source = bundle.manifest.source.selector
    assert source is not None and source.file == str(SELECTORS["learned"].resolve())
    assert source.sha256 == hashlib.sha256(SELECTORS["learned"].read_bytes()).hexdigest()
    copied = shutil.copytree(MODEL_DIR, tmp_path / "another")
    with pytest.raises(RequestError, match="give them with --selector-weights"):
        export(ExportRequest(str(copied), tmp_path / "refused", "64", method="learnpruner"))


def test_another_width_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    file = write_random_selector(tmp_path / "wide.safetensors", 2 * WIDTH)
    with pytest.raises(CheckpointError, match=f"of width {2 * WIDTH}, those of this model have {WIDTH}"):
        learned(checkpoint, tmp_path / "bundle", file)
    assert set(files(tmp_path)) == {"wide.safetensors"}


def test_force_does_not_remove_it(checkpoint: Path, selector: Path, tmp_path: Path) -> None:
    bundle = learned(checkpoint, tmp_path / "bundle", selector)
    inside = write_random_selector(bundle.folder / "selector.safetensors", WIDTH)
    with pytest.raises(OutputError, match="holds the selector's weights, so --force does not replace it"):
        learned(checkpoint, tmp_path / "bundle", inside, force=True)
    assert inside.is_file()


def test_the_file_at_hand(checkpoint: Path, tmp_path: Path) -> None:
    """What `verify` compares with is the export's own file, wherever it lies now."""
    file = write_random_selector(tmp_path / "selector.safetensors", WIDTH)
    bundle = learned(checkpoint, tmp_path / "bundle", file)
    assert selector_file(bundle) == file.resolve()
    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(CheckpointError, match="are gone; give them with --selector-weights"):
        selector_file(bundle)
    assert selector_file(bundle, str(moved)) == moved
    other = write_random_selector(tmp_path / "other.safetensors", WIDTH, seed=1)
    with pytest.raises(CheckpointError, match="is not the selector this bundle was made from"):
        selector_file(bundle, str(other))
    plain = export(request(checkpoint, tmp_path / "plain"))
    assert selector_file(plain) is None
    with pytest.raises(CheckpointError, match="leave out --selector-weights"):
        selector_file(plain, str(moved))


def test_the_manifest_says_it_where_it_must(checkpoint: Path, selector: Path, tmp_path: Path) -> None:
    bundle = learned(checkpoint, tmp_path / "bundle", selector)
    manifest = bundle.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    content["source"]["selector"] = None
    manifest.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"\$.source.selector: needed with stage 1 learned"):
        open_bundle(bundle.folder)
