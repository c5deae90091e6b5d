"""What a bundle tells of its adapter, and `verify` on the merged model."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from sts_export.adapters.opening import open_model
from sts_export.bundle.manifest import open_bundle
from sts_export.bundle.records import MergedAdapter
from sts_export.cli import main
from sts_export.errors import CheckpointError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.reference import ReferenceModel
from sts_export.testing.checkpoints.adapters import load_base, merged_by_peft, reconfigure, rewrite, write_random_adapter
from sts_export.verification.answers import verify
from tests.adapters.conftest import Bases

TARGETS = ["q_proj", "v_proj", "down_proj", "linear_1", "qkv", "proj"]


def bundle_of(model: Path, output: Path) -> Path:
    request = ExportRequest(str(model), output, budget="30%", max_prompt_tokens=90, max_new_tokens=10, max_visual_tokens=200)
    return export(request).folder


@pytest.mark.parametrize("base", ["llava", "llava_next", "qwen2_5_vl"])
def test_verify_merges_the_adapter_by_itself(bases: Bases, tmp_path: Path, base: str) -> None:
    adapter = write_random_adapter(bases.get(base), tmp_path / "adapter", target_modules=TARGETS)
    assert verify(bundle_of(adapter, tmp_path / "bundle"), pairs=2, max_new_tokens=4).passed


def test_verify_passes_where_adapter_and_base_share_a_folder(bases: Bases, tmp_path: Path) -> None:
    folder = shutil.copytree(bases.get("llava"), tmp_path / "both")
    write_random_adapter(folder, folder, target_modules=TARGETS)
    assert verify(bundle_of(folder, tmp_path / "bundle"), pairs=1, max_new_tokens=4).passed


def test_verify_fails_if_the_export_had_not_merged(bases: Bases, tmp_path: Path) -> None:
    """The same identity over the base's own weights."""
    adapter = write_random_adapter(bases.get("llava"), tmp_path / "adapter", target_modules=TARGETS)
    merged, plain = bundle_of(adapter, tmp_path / "merged"), bundle_of(bases.get("llava"), tmp_path / "plain")
    manifests = [json.loads((bundle / "manifest.json").read_text()) for bundle in (merged, plain)]
    (plain / "manifest.json").write_text(json.dumps(manifests[1] | {"source": manifests[0]["source"]}))
    assert not verify(plain, pairs=1, max_new_tokens=4).passed


@pytest.mark.parametrize("what", ["weights", "alpha", "gone"])
def test_verify_notices_another_adapter(bases: Bases, tmp_path: Path, what: str) -> None:
    adapter = write_random_adapter(bases.get("llava"), tmp_path / "adapter", target_modules=["q_proj"])
    bundle = bundle_of(adapter, tmp_path / "bundle")
    if what == "weights":
        rewrite(adapter, lambda tensors: next(iter(tensors.values())).add_(1))
    elif what == "alpha":
        reconfigure(adapter, lora_alpha=7)
    checkpoint = str(bases.get("llava")) if what == "gone" else None
    with pytest.raises(CheckpointError, match="is not the checkpoint this bundle was made from"):
        verify(bundle, checkpoint, pairs=1)


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("llava", {"target_modules": [*TARGETS, "embed_tokens", "lm_head", "patch_embedding"], "use_rslora": True}),
        ("llava", {"target_modules": ["q_proj"], "bias": "all", "alpha_pattern": {"layers.1.self_attn.q_proj": 3}}),
        ("llava_next", {"target_modules": ["fc1"], "modules_to_save": ["multi_modal_projector"]}),
        ("qwen2_5_vl", {"target_modules": TARGETS, "modules_to_save": ["merger"]}),
    ],
    ids=["factors", "biases", "whole", "qwen"],
)
def test_the_reference_merges_as_peft_does(bases: Bases, tmp_path: Path, base: str, settings: dict[str, object]) -> None:
    adapter = write_random_adapter(bases.get(base), tmp_path / "adapter", **settings)
    expected = merged_by_peft(bases.get(base), adapter).state_dict()
    ours = ReferenceModel.open(bases.get(base), adapter=adapter).model.state_dict()
    plain = load_base(bases.get(base)).state_dict()
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert (value - expected[name]).abs().max() <= 1e-6 * expected[name].abs().max(), name
    assert any(not torch.equal(value, plain[name]) for name, value in ours.items())


def test_the_reference_refuses_what_has_no_place(bases: Bases, tmp_path: Path) -> None:
    adapter = write_random_adapter(bases.get("llava"), tmp_path / "adapter", target_modules=["q_proj"])
    rewrite(adapter, lambda tensors: tensors.update({"base_model.model.score.weight": torch.ones(2, 2)}))
    with pytest.raises(CheckpointError, match=r"score\.weight has no place in the model"):
        ReferenceModel.open(bases.get("llava"), adapter=adapter)


def test_the_export_says_what_was_merged(bases: Bases, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bases.get("llava")
    adapter = write_random_adapter(base, tmp_path / "adapter", target_modules=["gate_proj"])
    capsys.readouterr()
    assert main(["--model", str(adapter), "--budget", "12", "--output", str(tmp_path / "bundle")]) == 0
    merge = f"the LoRA adapter in {adapter} was merged into 2 tensor(s) of {base}"
    note = f"{merge}; tokenizer and image processor are those in {base}"
    assert capsys.readouterr().err == f"note: {note}\n"
    source = open_bundle(tmp_path / "bundle").manifest.source
    assert source.folder == str(adapter)
    assert source.adapter == MergedAdapter(str(adapter), str(base), 2, str(base))
    assert set(source.weights) == {"model.safetensors", "adapter_model.safetensors", "adapter_config.json"}
    assert main(["inspect", str(tmp_path / "bundle")]) == 0
    assert note in capsys.readouterr().out
    assert main(["--model", str(base), "--budget", "12", "--output", str(tmp_path / "plain")]) == 0
    assert capsys.readouterr().err == ""


def test_the_export_says_which_files_beside_an_adapter_are_not_used(bases: Bases, tmp_path: Path) -> None:
    base = bases.get("llava")
    adapter = write_random_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(base / name, adapter)
    notes: list[str] = []
    export(ExportRequest(str(adapter), tmp_path / "same", budget="12"), note=notes.append)
    assert notes == []
    (adapter / "chat_template.jinja").write_text("{# mine #}" + (base / "chat_template.jinja").read_text())
    export(ExportRequest(str(adapter), tmp_path / "other", budget="12"), note=notes.append)
    (note,) = notes
    assert note.startswith("note: not used beside the adapter") and note.endswith(": chat_template.jinja")


def test_an_adapters_own_processor_goes_before_the_bases(bases: Bases, tmp_path: Path) -> None:
    """Where it is whole, as transformers' AutoProcessor would load it; the model's own files stay the base's."""
    base = bases.get("llava")
    adapter = write_random_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    shutil.copy(base / "tokenizer.json", adapter)
    assert open_model(adapter).processor_folder == base  # no image processor
    for file in base.glob("*"):
        if file.suffix != ".safetensors":
            shutil.copy(file, adapter)
    template = "{# mine #}" + (base / "chat_template.jinja").read_text()
    (adapter / "chat_template.jinja").write_text(template)
    (adapter / "generation_config.json").write_text('{"eos_token_id": 99}')
    bundle = bundle_of(adapter, tmp_path / "bundle")
    assert (bundle / "chat_template.jinja").read_text() == template
    assert (bundle / "generation_config.json").read_text() == (base / "generation_config.json").read_text()


def test_one_block_of_a_matrix_is_held_at_a_time(bases: Bases, tmp_path: Path) -> None:
    """64 MB matrices in blocks of 4 MB: neither a matrix nor the change of one is ever whole."""
    from sts_export.checkpoints.merged import LowRank, MergedTensor, blocks
    from sts_export.checkpoints.safetensors_header import TensorEntry

    rows, columns, rank = 4096, 4096, 8
    file = tmp_path / "weights"
    with file.open("wb") as stream:
        stream.truncate(4 * (rows * columns + rank * (rows + columns)))
    start = 4 * rows * columns
    left = TensorEntry("B", file, "F32", (rows, rank), start, 4 * rank * rows)
    right = TensorEntry("A", file, "F32", (rank, columns), start + left.nbytes, 4 * rank * columns)
    merged = MergedTensor("W", file, "F32", (rows, columns), 0, start, LowRank(left, right, 1.0))
    tracemalloc.start()
    try:
        total = sum(block.size for block in blocks(merged, 1 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == rows * columns
    assert peak < 18 << 20
