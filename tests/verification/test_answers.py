"""`verify`: what it passes, what it notices though every hash is right, what it refuses, and what it reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sts_export.bundle.manifest import open_bundle
from sts_export.bundle.records import record_file
from sts_export.checkpoints.safetensors_header import read_header
from sts_export.cli import main
from sts_export.errors import BackendError, BudgetError, CheckpointError, RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.media.synthetic import SIZES
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from sts_export.verification.answers import TOLERANCE, PairReport, VerifyReport, format_report, verify

torch.set_num_threads(1)
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": lambda folder: write_random_llava(folder, RandomLlava(layers=2, vision_layers=2)),
    "llava_next": lambda folder: write_random_llava_next(folder, RandomLlavaNext(layers=2, vision_layers=2)),
    "qwen2_5_vl": lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(layers=2)),
}
FAMILIES = tuple(WRITERS)
PICTURES = ((84, 84), (200, 90), (60, 230), (400, 300))


class Made:
    """Checkpoints and bundles, each written once; no test may change them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = cache(self._source)
        self.bundle = cache(self._bundle)
        self.pictures = []
        for index, size in enumerate(PICTURES):
            self.pictures.append(str(folder / f"{index}.png"))
            random_image(index, size).save(self.pictures[-1])

    def _source(self, family: str) -> Path:
        return WRITERS[family](self.folder / family)

    def _bundle(self, family: str, dtype: str | None = None, quantize: str | None = None, **choices: Any) -> Path:
        output = self.folder / "-".join([family, *map(str, (dtype, quantize)), *map(str, choices.values())])
        request = ExportRequest(
            str(self.source(family)),
            output,
            budget="20%",
            dtype=dtype,
            quantize=quantize,
            choices=dict(choices),
            max_prompt_tokens=90,
            max_new_tokens=10,
        )
        return export(request).folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("verify"))


# What passes


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_agrees_to_the_token(made: Made, family: str) -> None:
    """Pictures of every size that the family treats differently."""
    report = verify(made.bundle(family), images=made.pictures, max_new_tokens=5)
    assert report.passed and report.precision == "float32" and report.tolerance == 1e-3
    assert len(report.pairs) == len(PICTURES) and report.same_choice == 1.0
    for pair in report.pairs:
        assert pair.stage1_equal and pair.stage2_equal and pair.tokens_equal and not pair.near_tie
        assert 0 <= pair.logits_error < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_pairs(made: Made, family: str) -> None:
    """The default: one picture of each of its sizes, each with another prompt."""
    report = verify(made.bundle(family), max_new_tokens=2)
    assert report.passed and len(report.pairs) == len(SIZES) == 4
    assert len({pair.prompt for pair in report.pairs}) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_float16(made: Made, family: str) -> None:
    report = verify(made.bundle(family, dtype="float16"), images=made.pictures[:2], max_new_tokens=4)
    assert report.passed and report.precision == "float16" and report.tolerance == TOLERANCE["float16"]
    assert 1e-5 < max(pair.logits_error for pair in report.pairs) < TOLERANCE["float16"]
    assert all(pair.stage1_equal and pair.stage2_equal for pair in report.pairs)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("asked", [{"budget": "8%"}, {"keep": (9, 2)}], ids=["budget", "counts"])
def test_a_budget_of_the_request(made: Made, dtype: str, asked: dict[str, Any]) -> None:
    report = verify(made.bundle("qwen2_5_vl", dtype=dtype), images=made.pictures[:2], max_new_tokens=4, **asked)
    assert report.passed and all(pair.stage1_equal and pair.stage2_equal for pair in report.pairs)
    with pytest.raises(BudgetError, match="is unreachable: with this bundle"):
        verify(made.bundle("qwen2_5_vl", dtype=dtype), images=made.pictures[3:], budget="60%")


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_of_every_family(made: Made, family: str) -> None:
    report = verify(made.bundle(family, quantize="int8"), images=made.pictures, max_new_tokens=4)
    assert report.passed and report.precision == "int8"
    assert all(pair.stage1_equal for pair in report.pairs)
    assert 0.5 <= report.same_choice <= 1


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantized_demo(tmp_path: Path, scheme: str) -> None:
    """A trained model keeps its choices under quantization; errors are there, and within bounds."""
    bundle = export(ExportRequest("demo", tmp_path / "bundle", budget="64", quantize=scheme)).folder
    report = verify(bundle, pairs=2, max_new_tokens=6)
    assert report.passed and report.precision == scheme and report.tolerance == TOLERANCE[scheme]
    assert report.same_choice >= 0.9
    assert report.same_choice == pytest.approx(np.mean([pair.same_choice for pair in report.pairs]))
    for pair in report.pairs:
        assert pair.stage1_equal and 1e-3 < pair.logits_error < TOLERANCE[scheme] / 2


# What it notices


def fix_hashes(bundle: Path) -> None:
    """Let the manifest name the files as they are now."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for item in (*manifest["graphs"].values(), *manifest["weights"]["files"]):
        record = record_file(bundle / item["file"])
        item.update(size=record.size, sha256=record.sha256)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def alter(bundle: Path, tensor: str, change: Callable[[Any], Any], dtype: str = "<f4") -> None:
    """Change one tensor of the weights file."""
    file = bundle / "weights.safetensors"
    (entry,) = (item for name, item in read_header(file)[0].items() if name.endswith(tensor))
    content = np.memmap(file, np.uint8, "r+")
    values = content[entry.offset : entry.offset + entry.nbytes].view(dtype).reshape(entry.shape)
    values[:] = change(values.copy())
    content.flush()


def first_times(factor: float) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values.reshape(-1)[0] *= factor
        return values

    return change


def row_swapped(values: Any) -> Any:
    """The first and the second row in each other's places."""
    values[[0, 1]] = values[[1, 0]]
    return values


ALTERED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "head": ("lm_head.weight", first_times(2.0**16)),
    "embedding": ("embed_tokens.weight", lambda values: -values),
    "lower-layer": (".model.layers.0.self_attn.v_proj.weight", row_swapped),
    "upper-layer": ("layers.1.mlp.down_proj.weight", row_swapped),
    "norm": ("layers.1.input_layernorm.weight", first_times(3.0)),
}
TOWERS = {
    "llava": "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
    "llava_next": "multi_modal_projector.linear_1.weight",
    "qwen2_5_vl": "blocks.0.attn.qkv.weight",
}


def noticed(bundle: Path, made: Made) -> VerifyReport:
    """The manifest agrees with every file, and the report is FAILED."""
    fix_hashes(bundle)
    open_bundle(bundle, check_all=True)
    report = verify(bundle, images=made.pictures[:2], max_new_tokens=4)
    assert not report.passed and "FAILED: 2 pairs" in format_report(report)
    return report


@pytest.mark.parametrize(("tensor", "change"), ALTERED.values(), ids=ALTERED.keys())
def test_altered_weights(made: Made, tmp_path: Path, tensor: str, change: Callable[[Any], Any]) -> None:
    bundle = Path(shutil.copytree(made.bundle("llava"), tmp_path / "bundle"))
    alter(bundle, tensor, change)
    noticed(bundle, made)


def test_not_a_number(made: Made, tmp_path: Path) -> None:
    """Whatever the tolerance."""
    bundle = Path(shutil.copytree(made.bundle("llava", quantize="int4"), tmp_path / "bundle"))
    alter(bundle, "lm_head.weight.scales", first_times(float("nan")))
    fix_hashes(bundle)
    with pytest.raises(BackendError, match="NaN or infinity"):
        verify(bundle, pairs=1, max_new_tokens=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_altered_vision_weights(made: Made, tmp_path: Path, family: str) -> None:
    bundle = Path(shutil.copytree(made.bundle(family), tmp_path / "bundle"))
    alter(bundle, TOWERS[family], row_swapped)
    noticed(bundle, made)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("tensor", ["lm_head.weight.scales", "layers.1.self_attn.o_proj.weight.scales"])
def test_altered_scales(made: Made, tmp_path: Path, scheme: str, tensor: str) -> None:
    bundle = Path(shutil.copytree(made.bundle("llava", quantize=scheme), tmp_path / "bundle"))
    alter(bundle, tensor, lambda values: values * 8)
    noticed(bundle, made)


def test_altered_integers(made: Made, tmp_path: Path) -> None:
    """Nibbles in the wrong order would be such a mistake."""
    bundle = Path(shutil.copytree(made.bundle("llava", quantize="int4"), tmp_path / "bundle"))
    alter(bundle, "layers.1.mlp.gate_proj.weight.quantized", lambda values: (values << 4) | (values >> 4), "u1")
    noticed(bundle, made)


@pytest.mark.parametrize(
    ("graph", "choices"),
    [("selector", {"anchor": "first"}), ("llm_lower", {"score_layer": "next"})],
    ids=["selector", "llm_lower"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_of_another_bundle(made: Made, tmp_path: Path, family: str, graph: str, choices: dict[str, str]) -> None:
    """They run, and keep other tokens."""
    bundle = Path(shutil.copytree(made.bundle(family), tmp_path / "bundle"))
    other = made.bundle(family, **choices)
    place_of_weights_is_the_same(bundle, other)
    shutil.copy(other / f"{graph}.onnx", bundle)
    report = noticed(bundle, made)
    if graph == "selector":
        assert not all(pair.stage1_equal for pair in report.pairs)
    else:
        assert all(pair.stage1_equal for pair in report.pairs) and not all(pair.stage2_equal for pair in report.pairs)


def place_of_weights_is_the_same(first: Path, second: Path) -> None:
    ours, theirs = (read_header(folder / "weights.safetensors")[0] for folder in (first, second))
    assert {name: item.offset for name, item in ours.items()} == {name: item.offset for name, item in theirs.items()}


@pytest.mark.parametrize("precision", [{"dtype": "float16"}, {"quantize": "int8"}, {"quantize": "int4"}], ids=str)
def test_another_selection_is_noticed_in_every_precision(made: Made, tmp_path: Path, precision: dict[str, str]) -> None:
    """Stage 1 is compared on the bundle's own features there, and is exact all the same."""
    bundle = Path(shutil.copytree(made.bundle("llava", **precision), tmp_path / "bundle"))
    shutil.copy(made.bundle("llava", **precision, anchor="first") / "selector.onnx", bundle)
    assert not all(pair.stage1_equal for pair in noticed(bundle, made).pairs)


# What it refuses


def test_another_checkpoint(made: Made, tmp_path: Path) -> None:
    """Another seed, another family, other numbers in half of the file; a copy elsewhere is the same one."""
    other = write_random_llava(tmp_path / "other", RandomLlava(layers=2, vision_layers=2, seed=1))
    changed = Path(shutil.copytree(made.source("llava"), tmp_path / "changed"))
    alter_checkpoint(changed / "model.safetensors")
    for folder in (other, changed, made.source("qwen2_5_vl")):
        with pytest.raises(CheckpointError, match="is not the checkpoint this bundle was made from") as caught:
            verify(made.bundle("llava"), str(folder))
        assert "\n" not in str(caught.value)
    copied = shutil.copytree(made.source("llava"), tmp_path / "copied")
    assert verify(made.bundle("llava"), str(copied), pairs=1, max_new_tokens=2).passed


def alter_checkpoint(file: Path) -> None:
    content = bytearray(file.read_bytes())
    half = len(content) // 2
    content[half:] = bytes(byte ^ 1 for byte in content[half:])
    file.write_bytes(content)


def test_the_checkpoint_is_gone(made: Made, tmp_path: Path) -> None:
    source = shutil.copytree(made.source("llava"), tmp_path / "source")
    bundle = export(ExportRequest(str(source), tmp_path / "bundle", budget="12")).folder
    shutil.rmtree(source)
    with pytest.raises(CheckpointError, match=r"source checkpoint .* is gone; give it with --checkpoint"):
        verify(bundle)
    assert verify(bundle, str(made.source("llava")), pairs=1, max_new_tokens=2).passed


@pytest.mark.parametrize("wrong", [{"pairs": 0}, {"pairs": -1}, {"max_new_tokens": 0}], ids=str)
def test_nothing_to_compare(made: Made, wrong: dict[str, int]) -> None:
    with pytest.raises(RequestError, match="must be at least 1"):
        verify(made.bundle("llava"), **wrong)  # type: ignore[arg-type]


# What it reports


def test_command(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", str(made.bundle("llava")), "--pairs", "1", "--max-new-tokens", "3"]
    capsys.readouterr()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "passed: 1 pairs in float32, tolerance 0.001" in printed
    assert "same choice as the reference at 100.0% of the steps" in printed
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (pair,) = report.pop("pairs")
    expected = {"passed": True, "same_choice": 1.0, "precision": "float32", "tolerance": 1e-3, "backend": "onnxruntime"}
    assert report == {**expected, "operators": None}
    assert 0 <= pair.pop("logits_error") < 1e-3
    assert pair == {
        "prompt": "What is in the picture?",
        "stage1_equal": True,
        "stage2_equal": True,
        "near_tie": False,
        "tokens_equal": True,
        "same_choice": 1.0,
    }


def test_command_fails(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Path(shutil.copytree(made.bundle("llava"), tmp_path / "bundle"))
    alter(bundle, *ALTERED["lower-layer"])
    fix_hashes(bundle)
    arguments = ["verify", str(bundle), "--image", made.pictures[0], "--max-new-tokens", "3"]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] is False and printed.err == ""
    assert main(arguments) == 1
    assert "FAILED: 1 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "prompts", "pairs", "expected"),
    [(0, 0, 2, 2), (2, 0, 4, 2), (0, 3, 4, 3), (2, 1, 4, 2), (1, 2, 1, 2)],
)
def test_number_of_pairs(made: Made, images: int, prompts: int, pairs: int, expected: int) -> None:
    """As many as pictures or prompts, whichever are more; ``pairs`` counts where neither is given."""
    texts = ["What?", "Where?", "Who?"][:prompts]
    report = verify(made.bundle("llava"), images=made.pictures[:images], prompts=texts, pairs=pairs, max_new_tokens=1)
    assert len(report.pairs) == expected
    if texts:
        assert [pair.prompt for pair in report.pairs] == [texts[index % prompts] for index in range(expected)]


GOOD = PairReport("?", True, True, False, True, 1e-6, 1.0)


@pytest.mark.parametrize(
    ("precision", "pair", "passed"),
    [
        ("float32", GOOD, True),
        ("float32", replace(GOOD, near_tie=True), True),
        ("float32", replace(GOOD, tokens_equal=False), False),
        ("float16", replace(GOOD, tokens_equal=False), True),
        ("int4", replace(GOOD, tokens_equal=False, same_choice=0.5), True),
        ("float32", replace(GOOD, stage1_equal=False), False),
        ("float32", replace(GOOD, stage1_equal=False, near_tie=True, stage2_equal=False, tokens_equal=False), True),
        ("float32", replace(GOOD, stage1_equal=False, near_tie=True, logits_error=0.1), False),
        ("int8", replace(GOOD, stage1_equal=False), False),
        ("int8", replace(GOOD, stage2_equal=False), False),
        ("float32", replace(GOOD, logits_error=2e-3), False),
        ("float16", replace(GOOD, logits_error=2e-3), True),
        ("int8", replace(GOOD, logits_error=0.26), False),
        ("int4", replace(GOOD, logits_error=0.26), True),
        ("int4", replace(GOOD, logits_error=float("nan")), False),
        ("int4", replace(GOOD, logits_error=float("inf")), False),
    ],
)
def test_verdict(precision: str, pair: PairReport, passed: bool) -> None:
    """One bad pair among good ones decides."""
    report = VerifyReport(precision, TOLERANCE[precision], (GOOD, pair, GOOD))
    assert report.passed is passed
    assert report.same_choice == pytest.approx((2 + pair.same_choice) / 3)
    assert ("passed: 3 pairs" if passed else "FAILED: 3 pairs") in format_report(report)
    assert report.to_json()["pairs"] == tuple(asdict(item) for item in report.pairs)
