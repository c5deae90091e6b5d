"""LLaVA-NeXT and Qwen2.5-VL on the command line: several pictures, shares, limits, what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sts_export.bundle.manifest import open_bundle
from sts_export.cli import main
from sts_export.families.capacities import kv_bytes
from sts_export.testing.public_models import write_sparse_checkpoint
from tests.cli.helpers import error_line, tree

NAMES = ["llava_next", "qwen2_5_vl"]
FRAME = (255, 210, 0)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["run", *arguments, "--json", "--max-new-tokens", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result: dict[str, Any] = json.loads(printed.out)
    return result


def images(families: Path, *names: str) -> list[str]:
    return [argument for name in names for argument in ("--image", str(families / f"{name}.png"))]


@pytest.mark.parametrize("name", NAMES)
def test_several_pictures(families: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    bundle = [str(families / f"{name}-b"), "--prompt", "Which?"]
    wide, tall = (run_json(capsys, *bundle, *images(families, picture)) for picture in ("wide", "tall"))
    both = run_json(capsys, *bundle, *images(families, "wide", "tall"))
    swapped = run_json(capsys, *bundle, *images(families, "tall", "wide"))
    for stage in ("total", "stage1", "stage2"):
        assert both["visual_tokens"][stage] == wide["visual_tokens"][stage] + tall["visual_tokens"][stage]
        assert both["visual_tokens"][stage] == swapped["visual_tokens"][stage]
    assert both["newline_tokens"] == wide["newline_tokens"] + tall["newline_tokens"]
    assert (both["newline_tokens"] > 0) == (name == "llava_next")
    # Stage 1 sees each picture alone, in the order in which they were given.
    assert both["kept_stage1"] == wide["kept_stage1"] + tall["kept_stage1"] == swapped["kept_stage1"][::-1]
    first = wide["visual_tokens"]["total"]
    numbered = {*both["kept_stage1"][0], *(first + token for token in both["kept_stage1"][1])}
    assert set(both["kept_stage2"]) <= numbered and both["kept_stage2"] == sorted(set(both["kept_stage2"]))
    # A fifth of each picture's own tokens.
    for result in (wide, tall):
        counts = result["visual_tokens"]
        assert abs((counts["stage1"] + counts["stage2"]) / 2 - 0.2 * counts["total"]) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_more_pictures_than_the_bundle_holds(families: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    argv = ["run", str(families / f"{name}-b"), "--prompt", "Which?", *images(families, *["wide"] * 12)]
    assert main(argv) == 2
    line = error_line(capsys)
    assert "the prompt is too long" in line and "12 image(s) of" in line and "--max-visual-tokens" in line


def frames(file: Path) -> int:
    """Pixels of frames; a token's frame has as many as any other's, whatever stands beside it."""
    with Image.open(file) as picture:
        return int((np.asarray(picture.convert("RGB")) == FRAME).all(axis=-1).sum())


def test_show_llava_next(families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole picture, and the tiles without their padding beside it."""
    output = tmp_path / "kept.png"
    argv = ["show", str(families / "llava_next-b"), *images(families, "wide"), "--prompt", "What?", "-o", str(output)]
    assert main([*argv, "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: ")
    result = run_json(capsys, str(families / "llava_next-b"), "--prompt", "What?", *images(families, "wide"))
    counts = result["visual_tokens"]
    grid = counts["total"] - 36
    rows = result["newline_tokens"]
    with Image.open(output) as picture:
        assert picture.size == (2 * 84 + 8 + 2 * 14 * (grid // rows), max(2 * 84, 2 * 14 * rows))
    width = 28  # of a token, doubled; the frame is 2 wide
    assert frames(output) == counts["stage2"] * (width**2 - (width - 4) ** 2)
    assert tree(tmp_path) == {"kept.png"}


@pytest.mark.parametrize("name", NAMES)
def test_show_two_pictures(families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Every picture with its own tokens, although those of the second are numbered after those of the first."""
    bundle, sizes = str(families / f"{name}-b"), []
    for number, pictures in enumerate((["wide"], ["tall"], ["wide", "tall"])):
        output = tmp_path / f"{number}.png"
        argv = ["show", bundle, *images(families, *pictures), "--prompt", "Which?", "-o", str(output), "--max-new-tokens=1"]
        assert main(argv) == 0
        with Image.open(output) as picture:
            sizes.append(picture.size)
    printed = capsys.readouterr().out.splitlines()
    counts = run_json(capsys, bundle, "--prompt", "Which?", *images(families, "wide", "tall"))["visual_tokens"]
    assert f"2.png: {counts['total']} -> {counts['stage1']} -> {counts['stage2']} visual tokens; answer:" in printed[-1]
    (first, one), (second, other), both = sizes
    assert both == (first + 8 + second, max(one, other))
    pixels = 28 if name == "llava_next" else 56  # of a token's side, doubled
    assert frames(tmp_path / "2.png") == counts["stage2"] * (pixels**2 - (pixels - 4) ** 2)


def test_max_visual_tokens_of_qwen(families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "bundle")
    argv = ["--model", str(families / "qwen2_5_vl"), "--budget", "20%", "--output", output, "--max-prompt-tokens=90"]
    assert main([*argv, "--max-visual-tokens", "800"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.startswith(f"{output}: up to 126 visual tokens -> 38 before the LLM -> 12 after")
    assert main(["inspect", output, "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["capacities"]["visual_tokens"] == 800 and manifest["pruning"]["budget"] == "20%"
    assert manifest["pruning"]["positions"] == "keep"  # the default of models with M-RoPE
    argv = [output, "--prompt", "Which?", *images(families, *["wide", "tall"] * 4)]
    assert run_json(capsys, *argv)["visual_tokens"]["total"] > 300


def test_saliency_needs_a_cls_token(families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, code in (("qwen2_5_vl", 2), ("llava_next", 0)):
        argv = ["--model", str(families / name), "--budget", "20%", "--anchor", "saliency", "-o", str(tmp_path / name)]
        assert main([*argv, "--weights", "link"]) == code
        if code:
            expected = "anchor saliency needs a CLS token, which qwen2_5_vl has not: choose mean or first"
            assert error_line(capsys) == expected and tree(tmp_path) == set()
    capsys.readouterr()
    assert run_json(capsys, str(tmp_path / "llava_next"), "--prompt", "What?", *images(families, "wide"))["text"] is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("positions", ["reindex", "keep"])
def test_positions_may_be_chosen(
    families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, positions: str
) -> None:
    argv = ["--model", str(families / name), "--budget", "20%", "--positions", positions, "-o", str(tmp_path / "b")]
    assert main([*argv, "--weights", "link"]) == 0
    assert main(["inspect", str(tmp_path / "b")]) == 0
    assert f"positions {positions}\n" in capsys.readouterr().out
    assert run_json(capsys, str(tmp_path / "b"), "--prompt", "What?", *images(families, "tall"))["token_ids"]


INSPECT = {
    "llava_next": [
        "(llava_next), float32",
        "1 layers x 32, 180 visual tokens in 5 tilings",
        "2 layers x 48, 4 heads, 2 KV",
        "20%; an image of 45 tokens: 14, then 4",
        "90 prompt + 400 visual (before pruning) + 54 newlines + 10 new tokens",
        "repulsion (anchor mean, epsilon 1e-06)",
        "last-token (score layer own)",
        "positions reindex",
    ],
    "qwen2_5_vl": [
        "(qwen2_5_vl), float32",
        "4 layers x 32, 126 visual tokens",
        "2 layers x 64, 4 heads, 2 KV",
        "20%; an image of 31 tokens: 9, then 3",
        "90 prompt + 200 visual (before pruning) + 10 new tokens",
        "repulsion (anchor mean, epsilon 1e-06)",
        "last-token (score layer own)",
        "positions keep",
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_inspect(families: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["inspect", str(families / f"{name}-b")]) == 0
    text = capsys.readouterr().out
    for expected in INSPECT[name]:
        assert expected in text
    assert main(["inspect", str(families / f"{name}-b"), "--json", "--check"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((families / f"{name}-b" / "manifest.json").read_text())


def test_kv_bytes_of_llava_next_7b(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/method.md, "Numbers to meet": 2880 visual tokens take 1440 MiB, 320 on average 160 MiB."""
    source = write_sparse_checkpoint(tmp_path / "source", "llava-hf/llava-v1.6-vicuna-7b-hf")
    output = str(tmp_path / "bundle")
    assert main(["--model", str(source), "--budget", "320", "--weights", "link", "-o", output]) == 0
    assert "up to 2880 visual tokens -> 480 before the LLM -> 160 after layer 16 of 32 (average 320)" in capsys.readouterr().out
    assert main(["inspect", output]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith(("KV", "made")))
    assert lines["visual"] == "KV 160 MiB; unpruned 1440 MiB"
    model = open_bundle(output).manifest.model
    assert kv_bytes(model, 32, 2880, "float16") == 1440 << 20 and f"{1440 / 1024:.4g}" == "1.406"
    assert kv_bytes(model, 16, 480, "float16") + kv_bytes(model, 16, 160, "float16") == 160 << 20
    assert lines["capacity"] == "512 prompt + 2880 visual (before pruning) + 72 newlines + 512 new tokens"
    assert lines["average"] == "320 visual tokens per decoder layer"
