"""Exports whose sizes were not all asked for: they fit into the decoder's positions, keep their promise, and say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sts_export import Pipeline
from sts_export.cli import main
from sts_export.errors import BudgetError, RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

TOKEN = 28 * 28  # pixels
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": lambda f: write_random_llava(f, RandomLlava(layers=2, vision_layers=2)),
    "llava_next": lambda f: write_random_llava_next(f, RandomLlavaNext(layers=2, vision_layers=2)),
    "qwen2_5_vl": lambda f: write_random_qwen2_5_vl(f, RandomQwen25VL(layers=2, min_pixels=4 * TOKEN, max_pixels=1600 * TOKEN)),
}
Source = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A family's checkpoint whose decoder has so many positions."""

    @cache
    def write(name: str) -> Path:
        return FAMILIES[name](tmp_path_factory.mktemp(name) / "checkpoint")

    def limited(name: str, positions: int) -> Path:
        folder = write(name)
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["max_position_embeddings"] = positions
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return limited


# family, positions, what is asked for: prompt, new and visual tokens of the bundle.  Prompts take at least 92 tokens of
# Qwen's tokenizer here.
CHOSEN: dict[str, tuple[str, int, dict[str, Any], tuple[int, int, int]]] = {
    "llava-fits": ("llava", 2048, {"budget": "100%"}, (512, 512, 36)),
    "llava-just-fits": ("llava", 1060, {"budget": "100%"}, (512, 512, 36)),
    "llava-one-less": ("llava", 1059, {"budget": "100%"}, (512, 511, 36)),
    "llava-pruned": ("llava", 400, {"budget": "12"}, (191, 191, 36)),  # 18 rows of the picture
    "llava-original": ("llava", 400, {"budget": "12", "choices": {"positions": "original"}}, (182, 182, 36)),
    "llava-new-given": ("llava", 400, {"budget": "12", "max_new_tokens": 300}, (82, 300, 36)),
    "llava-prompt-given": ("llava", 400, {"budget": "12", "max_prompt_tokens": 60}, (60, 322, 36)),
    "llava-two-pictures": ("llava", 400, {"budget": "12", "max_visual_tokens": 72}, (182, 182, 72)),
    "llava-keep": ("llava", 400, {"keep": (30, 10)}, (185, 185, 36)),
    "next-fits": ("llava_next", 1222, {"budget": "100%"}, (512, 512, 180)),  # and 18 newlines
    "next-smaller": ("llava_next", 500, {"budget": "100%"}, (151, 151, 180)),
    "next-share": ("llava_next", 300, {"budget": "20%"}, (114, 114, 180)),  # 54 rows and 18 newlines
    "qwen-fits": ("qwen2_5_vl", 2624, {"budget": "100%"}, (512, 512, 1600)),
    "qwen-one-less": ("qwen2_5_vl", 2623, {"budget": "100%"}, (512, 512, 1599)),
    "qwen-smaller": ("qwen2_5_vl", 1200, {"budget": "64"}, (300, 300, 600)),
    "qwen-share": ("qwen2_5_vl", 480, {"budget": "20%"}, (120, 120, 240)),
    "qwen-text-given": ("qwen2_5_vl", 500, {"budget": "20%", "max_prompt_tokens": 150, "max_new_tokens": 20}, (150, 20, 330)),
    "qwen-new-given": ("qwen2_5_vl", 500, {"budget": "20%", "max_new_tokens": 100}, (200, 100, 200)),
    "qwen-visual-given": ("qwen2_5_vl", 500, {"budget": "20%", "max_visual_tokens": 250}, (125, 125, 250)),
    "qwen-two-pictures": ("qwen2_5_vl", 2300, {"budget": "20%", "max_visual_tokens": 1800}, (250, 250, 1800)),
}


@pytest.mark.parametrize(("family", "positions", "options", "expected"), CHOSEN.values(), ids=CHOSEN.keys())
def test_what_is_chosen_fits_and_is_kept(
    source: Source,
    tmp_path: Path,
    family: str,
    positions: int,
    options: dict[str, Any],
    expected: tuple[int, int, int],
) -> None:
    """A largest picture, a prompt as long as promised and an answer as long as promised."""
    notes: list[str] = []
    request = ExportRequest(str(source(family, positions)), tmp_path / "bundle", weights="link", **options)
    bundle = export(request, note=notes.append)
    capacities = bundle.manifest.capacities
    prompt, new, visual = capacities.prompt_tokens, capacities.new_tokens, capacities.visual_tokens
    assert (prompt, new, visual) == expected
    assert max(*capacities.rows, capacities.positions) <= positions
    open_options = {"max_prompt_tokens": prompt < 512, "max_new_tokens": new < 512, "max_visual_tokens": visual < 1600}
    smaller = {name for name, is_smaller in open_options.items() if is_smaller and name not in options}
    if family != "qwen2_5_vl":
        smaller.discard("max_visual_tokens")
    assert len(notes) == (1 if smaller else 0)
    for name in open_options:
        assert (f"--{name.replace('_', '-')}" in "".join(notes)) == (name in smaller)
    with Pipeline(bundle.folder, threads=1) as vlm:
        picture = largest_picture(vlm)
        answer = vlm.generate(prompt_of(vlm, prompt, picture), picture, max_new_tokens=new, ignore_eos=True)
        assert len(answer.token_ids) == new


def largest_picture(vlm: Pipeline) -> Image.Image:
    """One that has nearly as many tokens as a picture may have."""
    most = vlm.manifest.model.max_image_tokens
    picture = random_image(0, (1200, 1200))
    tokens = vlm.prepared(picture).num_tokens
    assert 0.85 * most <= tokens <= most
    return picture


def prompt_of(vlm: Pipeline, tokens: int, picture: Image.Image) -> str:
    """A prompt of exactly so many text tokens, template included."""
    image = vlm.prepared(picture)
    rows = vlm.manifest.pruning.keeps(image.num_tokens)[0] + image.num_newlines
    shortest = int((vlm.prepare_ids("!", [rows]) != VISUAL_ROW).sum())
    prompt = "!" * (1 + tokens - shortest)
    assert int((vlm.prepare_ids(prompt, [rows]) != VISUAL_ROW).sum()) == tokens
    return prompt


REFUSED: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "llava-nothing-left": (
        "llava",
        99,
        {"budget": "100%"},
        "at least 32 prompt + 36 visual + at least 32 new tokens exceed 99 positions; lower --max-prompt-tokens",
    ),
    "llava-given": (
        "llava",
        400,
        {"budget": "12", "max_prompt_tokens": 200, "max_new_tokens": 200},
        "200 prompt + 18 visual + 200 new tokens exceed 400 positions",
    ),
    "llava-little-left": (
        "llava",
        400,
        {"budget": "12", "max_new_tokens": 360},
        "at least 32 prompt + 18 visual + 360 new tokens exceed 400 positions",
    ),
    "qwen-given": (
        "qwen2_5_vl",
        2623,
        {"budget": "64", "max_prompt_tokens": 512, "max_new_tokens": 512, "max_visual_tokens": 1600},
        "512 prompt + 1600 visual + 512 new tokens exceed 2623 positions",
    ),
    "qwen-no-pictures": (
        "qwen2_5_vl",
        500,
        {"budget": "20%", "max_prompt_tokens": 300, "max_new_tokens": 150},
        "300 prompt + 150 new tokens leave 50 of 500 positions to pictures, which need 64; lower --max-prompt-tokens",
    ),
    "qwen-nothing": (
        "qwen2_5_vl",
        500,
        {"budget": "20%", "max_prompt_tokens": 900},
        "900 prompt + at least 32 new tokens leave 0 of 500 positions to pictures",
    ),
    "qwen-tiny": ("qwen2_5_vl", 120, {"budget": "20%"}, "leave 60 of 120 positions to pictures, which need 64"),
}


@pytest.mark.parametrize(("family", "positions", "options", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_fit_is_refused(
    source: Source, tmp_path: Path, family: str, positions: int, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RequestError) as caught:
        export(ExportRequest(str(source(family, positions)), tmp_path / "bundle", **options))
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"budget": "700"}, "budget 700 is unreachable: the average number of visual tokens per layer can be 1 to 600"),
        ({"budget": "2000"}, "budget 2000 is unreachable: the average number of visual tokens per layer can be 1 to 600"),
        ({"keep": (700, 100)}, "stage 1 cannot keep 700 of 600 visual tokens"),
    ],
)
def test_a_budget_beyond_the_size_that_fits(source: Source, tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    """The error says why pictures have no more tokens."""
    with pytest.raises(BudgetError) as caught:
        export(ExportRequest(str(source("qwen2_5_vl", 1200)), tmp_path / "bundle", **options))
    assert expected in str(caught.value) and "pictures are limited to 600 of 1600 visual tokens" in str(caught.value)
    with pytest.raises(BudgetError) as caught:  # asked for, so no reason to explain it
        request = ExportRequest(str(source("qwen2_5_vl", 1200)), tmp_path / "bundle", max_visual_tokens=600, **options)
        export(request)
    assert "are limited to" not in str(caught.value)


def test_other_errors_are_not_blamed_on_the_size(source: Source, tmp_path: Path) -> None:
    for options in ({"budget": "many"}, {"budget": "64", "choices": {"anchor": "last"}}, {}):
        with pytest.raises(BudgetError) as caught:
            export(ExportRequest(str(source("qwen2_5_vl", 1200)), tmp_path / "bundle", **options))
        assert "are limited to" not in str(caught.value)


LINES = {
    "llava": (
        400,
        "note: prompts are limited to 191 text tokens and answers to 191 tokens, so that prompt, pictures and answer fit in "
        "400 positions; set with --max-prompt-tokens and --max-new-tokens\n",
    ),
    "qwen2_5_vl": (
        2623,
        "note: pictures are limited to 1599 of 1600 visual tokens, so that prompt, pictures and answer fit in 2623 positions; "
        "set with --max-visual-tokens\n",
    ),
}


@pytest.mark.parametrize("family", LINES)
def test_the_command_line_says_what_was_chosen(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    positions, line = LINES[family]
    argv = ["--model", str(source(family, positions)), "--budget", "12", "--weights", "link", "-o", str(tmp_path / "b")]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert printed.err.endswith(line) and printed.err.count("note:") == 1
    assert printed.out.startswith(f"{tmp_path / 'b'}: ") and printed.out.count("\n") == 1
