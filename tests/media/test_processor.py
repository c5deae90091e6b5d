"""open_image_processor: settings files, parity with transformers, and life without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sts_export.errors import CheckpointError
from sts_export.families import image_processors
from sts_export.media.processor import open_image_processor

SETTINGS: dict[str, Any] = {
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 56},
}


def picture(width: int = 90, height: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def pixels(folder: Path, image: Image.Image) -> NDArray[Any]:
    return open_image_processor(folder, image_processors())(image)["pixel_values"]


def refusal(folder: Path) -> str:
    """Of a processor that has to make pictures of 56 x 56."""
    with pytest.raises(CheckpointError) as caught:
        open_image_processor(folder, image_processors()).expect("pixel_values", (1, 3, 56, 56))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"])
def test_equals_transformers(tmp_path: Path, kind: str) -> None:
    from transformers import CLIPImageProcessorPil

    write(tmp_path, "preprocessor_config.json", {**SETTINGS, "image_processor_type": kind})
    values = pixels(tmp_path, picture())
    assert values.shape == (1, 3, 56, 56) and values.dtype == np.float32
    expected = CLIPImageProcessorPil(**{k: v for k, v in SETTINGS.items() if not k.endswith(("type", "class"))})
    np.testing.assert_array_equal(values, expected(images=picture(), return_tensors="np")["pixel_values"])


def test_normalisation_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", SETTINGS)
    values = pixels(tmp_path, Image.new("RGB", (56, 56), (51, 102, 204)))
    for channel, level in enumerate((0.2, 0.4, 0.8)):
        expected = (level - SETTINGS["image_mean"][channel]) / SETTINGS["image_std"][channel]
        np.testing.assert_allclose(values[0, channel], expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (3, 3), (4, 4), (1, 200), (200, 1)])
def test_tiny_images(tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path, "preprocessor_config.json", SETTINGS)
    assert pixels(tmp_path, picture(*size)).shape == (1, 3, 56, 56)


def test_integer_sizes_of_old_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {**SETTINGS, "size": 42, "crop_size": 42})
    assert pixels(tmp_path, picture()).shape == (1, 3, 42, 42)


def test_old_feature_extractor_name(tmp_path: Path) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k != "image_processor_type"}
    write(tmp_path, "preprocessor_config.json", {**settings, "feature_extractor_type": "CLIPFeatureExtractor"})
    assert pixels(tmp_path, picture()).shape == (1, 3, 56, 56)


def test_processor_config_goes_first(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {**SETTINGS, "crop_size": {"height": 28, "width": 28}})
    write(tmp_path, "processor_config.json", {"processor_class": "LlavaProcessor"})
    assert pixels(tmp_path, picture()).shape[2] == 28
    write(tmp_path, "processor_config.json", {"image_processor": SETTINGS})
    assert pixels(tmp_path, picture()).shape[2] == 56


def test_saved_by_transformers(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil

    CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}).save_pretrained(tmp_path)
    assert pixels(tmp_path, picture()).shape == (1, 3, 30, 30)


def test_missing(tmp_path: Path) -> None:
    assert "preprocessor_config.json" in refusal(tmp_path)
    assert "preprocessor_config.json" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "", "[1, 2]", "null", "\x00\x01"])
def test_invalid_json(tmp_path: Path, content: str) -> None:
    assert "preprocessor_config.json" in refusal(write(tmp_path, "preprocessor_config.json", content))


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(b'{"\xff\xfe": 1}')
    assert "is not valid JSON" in refusal(tmp_path)


def test_unknown_type(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "preprocessor_config.json", {**SETTINGS, "image_processor_type": "OtherImageProcessor"}))
    assert "OtherImageProcessor" in message and "CLIPImageProcessor" in message
    assert "image_processor_type" in refusal(write(tmp_path, "preprocessor_config.json", {"size": 3}))
    assert "image_processor_type" in refusal(
        write(tmp_path, "preprocessor_config.json", {**SETTINGS, "image_processor_type": 7})
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"image_std": [0, 0, 0]},
        {"image_mean": [0.5, 0.5]},
        {"size": {"wrong": 3}},
        {"size": "large"},
        {"crop_size": {"height": 0, "width": 0}},
        {"rescale_factor": "x"},
    ],
)
def test_settings_that_do_not_work(tmp_path: Path, damage: dict[str, Any]) -> None:
    assert "restore" in refusal(write(tmp_path, "preprocessor_config.json", {**SETTINGS, **damage}))


def test_runtime_works_without_torch(tmp_path: Path) -> None:
    """Images, prompts, sampling and streaming in a process where torch cannot be imported, and nothing on stderr."""
    write(tmp_path, "preprocessor_config.json", SETTINGS)
    script = f"""
import sys
from pathlib import Path
sys.modules["torch"] = sys.modules["torchvision"] = None
import sts_export.media.images, sts_export.requests.prompt, sts_export.generation.result
import sts_export.generation.sampling, sts_export.generation.stopping
from sts_export.families import image_processors
from sts_export.media.processor import open_image_processor
from PIL import Image
print(open_image_processor(Path({str(tmp_path)!r}), image_processors())(Image.new("RGB", (9, 9)))["pixel_values"].shape)
assert not any(name.startswith("torch") and module for name, module in sys.modules.items())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 3, 56, 56)"
    assert done.stderr == ""
