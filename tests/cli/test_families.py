"""LLaVA-NeXT and Qwen2.5-VL on the command line: several pictures, shares, limits, what cannot be."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sts_export.bundle.manifest import open_bundle
from sts_export.cli import main
from sts_export.families.capacities import kv_bytes
from sts_export.generation.pipeline import Pipeline
from sts_export.testing.public_models import write_sparse_checkpoint
from tests.cli.helpers import error_line, tree

NAMES = ["llava_next", "qwen2_5_vl"]
KEPT, STAGE1 = "2", "1"  # in a page


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
    assert "the prompt is too long" in line and "12 image" in line and "--max-visual-tokens" in line


def fates(page: Path) -> list[str]:
    """A sign for every token, of every view."""
    return re.findall(r'data-fates="(\d*)"', page.read_text(encoding="utf-8"))


def places(signs: str, wanted: str) -> list[int]:
    return [token for token, fate in enumerate(signs) if fate in wanted]


def show(families: Path, bundle: str, output: Path, *pictures: str) -> int:
    argv = ["show", str(families / bundle), *images(families, *pictures), "--prompt", "Which?", "-o", str(output)]
    return main([*argv, "--max-new-tokens", "2"])


def test_show_llava_next(families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole picture, and the tiles without their padding below it."""
    output, picture = tmp_path / "kept.html", tmp_path / "kept.png"
    assert show(families, "llava_next-b", output, "wide") == 0
    assert capsys.readouterr().out.startswith(f"{output}: ")
    result = run_json(capsys, str(families / "llava_next-b"), "--prompt", "Which?", *images(families, "wide"))
    whole, tiles = fates(output)
    assert len(whole) == 36 and len(whole + tiles) == result["visual_tokens"]["total"]
    assert places(whole + tiles, KEPT + STAGE1) == result["kept_stage1"][0]
    assert places(whole + tiles, KEPT) == result["kept_stage2"]
    rows = result["newline_tokens"]  # one at the end of each row of the tiles
    assert f'viewBox="0 0 {len(tiles) // rows} {rows}"' in output.read_text(encoding="utf-8")
    assert show(families, "llava_next-b", picture, "wide") == 0
    with Image.open(picture) as drawn:
        assert drawn.width == len(tiles) // rows * (480 // (len(tiles) // rows)) + 2 * 16  # the tiles are the wider view
    assert tree(tmp_path) == {"kept.html", "kept.png"}


@pytest.mark.parametrize("name", NAMES)
def test_show_two_pictures(families: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Every picture with its own tokens, although those of the second are numbered after those of the first."""
    pages = [["wide"], ["tall"], ["wide", "tall"]]
    for number, pictures in enumerate(pages):
        assert show(families, f"{name}-b", tmp_path / f"{number}.html", *pictures) == 0
    printed = capsys.readouterr().out.splitlines()
    result = run_json(capsys, str(families / f"{name}-b"), "--prompt", "Which?", *images(families, "wide", "tall"))
    counts = result["visual_tokens"]
    assert f"2.html: {counts['total']} -> {counts['stage1']} -> {counts['stage2']} visual tokens; answer:" in printed[-1]
    wide, tall, both = (fates(tmp_path / f"{number}.html") for number in range(3))
    assert [len(view) for view in both] == [len(view) for view in wide + tall]
    assert places("".join(both), KEPT) == result["kept_stage2"]
    first = len("".join(wide))
    kept1 = [*result["kept_stage1"][0], *(first + token for token in result["kept_stage1"][1])]
    assert places("".join(both), KEPT + STAGE1) == kept1


@pytest.mark.parametrize("name", NAMES)
def test_show_merged_tokens(families: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Merges are numbered picture by picture; in a page, view by view."""
    generate = Pipeline.generate
    sizes: list[list[int]] = []
    expected: set[tuple[int, ...]] = set()
    for picture in ("wide", "tall"):
        assert show(families, f"{name}-b", tmp_path / f"{picture}.html", picture) == 0
        sizes.append([len(view) for view in fates(tmp_path / f"{picture}.html")])

    def merging(*args: Any, **settings: Any) -> Any:
        """As if stage 1 had merged every token that it drops into the kept one before it in the view, where there is one."""
        result, merged, first = generate(*args, **settings), [], 0
        for kept, views in zip(result.kept_stage1, sizes, strict=True):
            merged.append([-1] * sum(views))
            starts = [sum(views[:number]) for number in range(len(views))]
            for token in {*range(sum(views))} - {*kept}:
                start = max(start for start in starts if start <= token)
                merged[-1][token] = max((one for one in kept if start <= one < token), default=-1)
            expected.update((first + token, first + into) for token, into in enumerate(merged[-1]) if into >= 0)
            first += sum(views)
        return replace(result, merged_into=merged)

    monkeypatch.setattr(Pipeline, "generate", merging)
    assert show(families, f"{name}-b", tmp_path / "both.html", "wide", "tall") == 0
    found: set[tuple[int, ...]] = set()
    first = 0
    page = unescape((tmp_path / "both.html").read_text(encoding="utf-8"))
    for signs, pairs in re.findall(r'data-fates="(\d*)" data-merged="([^"]*)"', page):
        drawn = {tuple(first + int(number) for number in pair.split(">")) for pair in pairs.split()}
        assert [first + token for token in places(signs, "3")] == sorted(source for source, _ in drawn)
        found |= drawn
        first += len(signs)
    assert found == expected and len(found) > 10


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
