"""The random checkpoints themselves: complete in every layout, the same model in each, sharp enough to show mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from sts_export.testing.checkpoints import (
    IMAGE_TOKEN,
    QWEN_SPECIAL_TOKENS,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

torch.set_num_threads(1)

PICTURE = (150, 70)
NEXT = {
    "vicuna": RandomLlavaNext(kv_heads=4),
    "mistral": RandomLlavaNext(decoder="mistral", rope_theta=1e6, tied_embeddings=True),
}
QWEN = {"grouped": RandomQwen25VL(), "tied": RandomQwen25VL(kv_heads=4, tied_embeddings=True, layers=3)}
# One name that only this layout has.
NEXT_NAMES = {
    "5.x": "vision_tower.encoder.layers.0.self_attn.q_proj.weight",
    "4.x": "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "memory-4.52": "model.image_newline",
    "memory-5.x": "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight",
    "flat": "language_model.layers.0.self_attn.q_proj.weight",
}
QWEN_NAMES = {
    "5.x": "model.layers.0.self_attn.q_proj.bias",
    "4.x": "visual.patch_embed.proj.weight",
    "memory-4.52": "model.visual.merger.mlp.0.weight",
}


def load(kind: Any, folder: Path) -> Any:
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return set(file.keys())


def next_inputs(folder: Path, image: Image.Image) -> dict[str, Any]:
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return dict(processor(text="USER: <image>\nWhat is on the table? ASSISTANT:", images=image, return_tensors="pt"))


def qwen_inputs(spec: RandomQwen25VL, folder: Path, image: Image.Image) -> dict[str, Any]:
    values = dict(Qwen2VLImageProcessorPil.from_pretrained(folder)(images=image, return_tensors="pt"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on the table?"}]}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    count = int(values["image_grid_thw"].prod()) // spec.merge_size**2
    ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")["input_ids"]
    visual = ids == spec.token("<|image_pad|>")
    assert visual.sum() == count and 30 <= count <= 80
    return {**values, "input_ids": ids, "mm_token_type_ids": visual.long()}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    result: torch.Tensor = model(**inputs).logits
    assert 1 < result.std() < 6 and len(set(result.argmax(-1).flatten().tolist())) > 20
    return result


def new_tokens(model: Any, inputs: dict[str, Any]) -> list[int]:
    tokens: list[int] = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize("decoder", NEXT)
def test_llava_next_is_the_same_model_in_every_layout(tmp_path: Path, decoder: str) -> None:
    results = []
    for layout, name in NEXT_NAMES.items():
        folder = write_random_llava_next(tmp_path / layout, dataclasses.replace(NEXT[decoder], layout=layout))  # type: ignore[arg-type]
        assert name in names(folder)
        model = load(LlavaNextForConditionalGeneration, folder)
        assert model.config.text_config.model_type == {"vicuna": "llama", "mistral": "mistral"}[decoder]
        assert getattr(model.config.text_config, "sliding_window", None) is None
        inputs = next_inputs(folder, random_image(3, PICTURE))
        results.append(logits(model, inputs))
    for result in results:  # not to the bit: files put weights at other alignments, which some libraries' products depend on
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)
    # 84 x 168 is the best tile grid for 150 x 70: base tile, all 6 rows of 12 kept, a newline each.
    assert inputs["pixel_values"].shape == (1, 3, 3, 84, 84)
    assert int((inputs["input_ids"] == IMAGE_TOKEN).sum()) == 36 + 6 * 12 + 6


@pytest.mark.parametrize("kind", QWEN)
def test_qwen2_5_vl_is_the_same_model_in_every_layout(tmp_path: Path, kind: str) -> None:
    results = []
    for layout, name in QWEN_NAMES.items():
        spec = dataclasses.replace(QWEN[kind], layout=layout)  # type: ignore[arg-type]
        folder = write_random_qwen2_5_vl(tmp_path / layout, spec)
        assert name in names(folder)
        assert ("lm_head.weight" in names(folder)) != spec.tied_embeddings
        model = load(Qwen2_5_VLForConditionalGeneration, folder)
        assert model.config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
        inputs = qwen_inputs(spec, folder, random_image(3, PICTURE))
        results.append(logits(model, inputs))
    for result in results:  # not to the bit: files put weights at other alignments, which some libraries' products depend on
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)


def test_qwen_tokens_have_the_ids_of_the_config(tmp_path: Path) -> None:
    spec = RandomQwen25VL(layout="4.x")
    folder = write_random_qwen2_5_vl(tmp_path, spec)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(list(QWEN_SPECIAL_TOKENS)) == [spec.token(name) for name in QWEN_SPECIAL_TOKENS]
    assert tokenizer.eos_token_id == spec.token("<|im_end|>") and tokenizer.bos_token is None
    assert len(tokenizer) < spec.vocab_size
    config = json.loads((folder / "config.json").read_text())
    assert "text_config" not in config and config["image_token_id"] == spec.token("<|image_pad|>")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    assert tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Where?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("decoder", "prompt"), [("vicuna", "USER: <image>\nWhere? ASSISTANT:"), ("mistral", "[INST] <image>\nWhere? [/INST]")]
)
def test_llava_next_chat_templates(tmp_path: Path, decoder: str, prompt: str) -> None:
    folder = write_random_llava_next(tmp_path, NEXT[decoder])
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) == prompt


@pytest.mark.parametrize("layout", ["5.x", "4.x"])
def test_generation_is_greedy_and_varied(tmp_path: Path, layout: Any) -> None:
    spec = RandomQwen25VL(layout=layout)
    folder = write_random_qwen2_5_vl(tmp_path / "qwen", spec)
    model = load(Qwen2_5_VLForConditionalGeneration, folder)
    first, second = (qwen_inputs(spec, folder, random_image(seed, PICTURE)) for seed in (1, 2))
    answer, other = (new_tokens(model, inputs) for inputs in (first, second))
    assert answer != other and len(set(answer)) > 5

    next_spec = RandomLlavaNext(decoder="mistral", layout=layout, grid_pinpoints=((84, 84), (84, 252)))
    folder = write_random_llava_next(tmp_path / "next", next_spec)
    llava = load(LlavaNextForConditionalGeneration, folder)
    inputs = next_inputs(folder, random_image(1, PICTURE))
    assert llava.config.image_grid_pinpoints == [[84, 84], [84, 252]]
    assert inputs["pixel_values"].shape[1] == 4
    assert len(set(new_tokens(llava, inputs))) > 5
