"""What cannot be exported is refused in one line before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sts_export.errors import CheckpointError, RequestError, StsExportError
from sts_export.exporting.exporter import export
from sts_export.testing.checkpoints import RandomLlava, RandomLlavaNext, write_random_llava, write_random_llava_next
from tests.exporting.helpers import files, request

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no-budget": ({"budget": None}, "give either a budget"),
    "budget-and-keep": ({"keep": (9, 3)}, "give either a budget"),
    "keep-too-many": ({"budget": None, "keep": (37, 3)}, "stage 1 cannot keep 37 of 36"),
    "keep-stage2-above": ({"budget": None, "keep": (9, 10)}, "stage 2 cannot keep 10"),
    "keep-zero": ({"budget": None, "keep": (0, 0)}, "stage 1 cannot keep 0"),
    "unknown-method": ({"method": "faster"}, "unknown method 'faster'"),
    "unknown-method-with-keep": ({"budget": None, "keep": (9, 3), "method": "x"}, "unknown method 'x'"),
    "prune-layer": ({"prune_layer": 4}, "choose --prune-layer between 1 and 1"),
    "unknown-anchor": ({"choices": {"anchor": "last"}}, "unknown anchor"),
    "unknown-dtype": ({"dtype": "int8"}, "unknown dtype 'int8'"),
    "prompt-tokens-zero": ({"max_prompt_tokens": 0}, "must be at least 1"),
    "new-tokens-negative": ({"max_new_tokens": -1}, "must be at least 1"),
    "visual-tokens-zero": ({"max_visual_tokens": 0}, "--max-visual-tokens 0 must be at least 1"),
    "visual-tokens-beyond-positions": ({"max_visual_tokens": 5000}, "exceed 2048 positions; lower"),
    "unknown-weights-mode": ({"weights": "move"}, "unknown weights mode 'move': choose copy or link"),
    "too-many-positions": ({"max_new_tokens": 2000}, "exceed 2048 positions"),
    "link-with-conversion": ({"weights": "link", "dtype": "float16"}, "--weights link cannot convert"),
}


@pytest.mark.parametrize(("options", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_requests(checkpoint: Path, tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        export(request(checkpoint, tmp_path / "sub" / "bundle", **options))
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == {}


def test_one_decoder_layer_cannot_be_split(tmp_path: Path) -> None:
    source = write_random_llava(tmp_path / "source", RandomLlava(layers=1))
    with pytest.raises(StsExportError, match="a decoder of 1 layer cannot be split"):
        export(request(source, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_an_attention_window_is_not_exceeded(tmp_path: Path) -> None:
    """The graphs attend to every row: rows beyond the window would be attended to, too."""
    source = write_random_llava_next(tmp_path / "source", RandomLlavaNext(decoder="mistral"))
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["sliding_window"] = 256
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="new tokens exceed 256 positions; lower --max-prompt-tokens"):
        export(request(source, tmp_path / "bundle", max_prompt_tokens=512, max_new_tokens=512))
    export(request(source, tmp_path / "bundle", max_prompt_tokens=100, max_new_tokens=100))


def test_overflow_leaves_nothing(tmp_path: Path) -> None:
    source = write_random_llava(tmp_path / "source")
    file = source / "model.safetensors"
    from safetensors.torch import save_file

    tensors = load_file(file)
    tensors["multi_modal_projector.linear_1.bias"][3] = 1e6
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"multi_modal_projector.linear_1.bias has values that float16 cannot hold"):
        export(request(source, tmp_path / "bundle", dtype="float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json; copy the tokenizer files"),
        (
            "processor_config.json",
            None,
            "has no image processor: neither preprocessor_config.json nor .*; copy it from the model",
        ),
        (
            "processor_config.json",
            {"crop_size": {"height": 224, "width": 224}},
            "crops to 224 pixels, the vision tower takes 84",
        ),
    ],
    ids=["no-tokenizer", "no-processor", "other-crop"],
)
def test_what_the_runtime_will_need_is_there(
    checkpoint: Path, tmp_path: Path, name: str, change: dict[str, Any] | None, message: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    if change is None:
        (source / name).unlink()
    else:
        settings = json.loads((source / name).read_text())
        settings["image_processor"] |= change
        (source / name).write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        export(request(source, tmp_path / "bundle"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
