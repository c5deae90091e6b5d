"""A packed sequence is the sum of its conversations: logits of transformers, one conversation at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from scripts.demo_training.labels import PATCHES
from scripts.demo_training.model import build_model, train_tokenizer
from scripts.demo_training.packing import answer_logits, encode, pack
from scripts.demo_training.pictures import MEAN, STD
from scripts.demo_training.tower import vision_features
from sts_export.demo.drawing import render
from sts_export.demo.questions import Question
from sts_export.demo.world import sample_scene


@pytest.fixture(scope="module")
def made() -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    tokenizer = train_tokenizer()
    return build_model(tokenizer, seed=3).eval(), tokenizer


def pixels(seed: int) -> torch.Tensor:
    picture = torch.from_numpy(np.asarray(render(sample_scene(seed))).copy()).permute(2, 0, 1).float() / 255
    return (picture - MEAN) / STD


def positions_of(ids: torch.Tensor, image_token: int, strides: list[float]) -> torch.Tensor:
    """[1, sequence] float32: what transformers numbers 0, 1, 2 ..., with another step at the tokens of each picture."""
    taken = torch.ones(len(ids))
    for place, stride in enumerate(strides):
        taken[(ids == image_token).nonzero()[place * PATCHES : (place + 1) * PATCHES]] = stride
    return (taken.cumsum(0) - taken)[None]


@pytest.mark.parametrize(
    ("system", "strides"),
    [
        ("", [1.0]),
        ("Answer with a word. ", [1.0]),
        ("Answer with a word. ", [1.0, 1.0]),
        ("", [1 / 4]),
        ("Answer with a word. ", [1 / 16, 1 / 2]),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_single_conversations(
    made: tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast], system: str, strides: list[float]
) -> None:
    count = len(strides)
    model, tokenizer = made
    asked = [
        [Question("color", "What color is the star?", "red", count), Question("echo", "Repeat blue.", "blue", 0)],
        [Question("reading", "Read the text.", "OWL", count)],
    ]
    pictures = [torch.stack([pixels(10 * place + row) for row in range(2)]) for place in range(count)]
    features = [vision_features(model, some)[:, 1:] for some in pictures]
    model.config.text_config._attn_implementation = "sdpa"
    alone = {}
    for row, questions in enumerate(asked):
        for number, question in enumerate(questions):
            content = [{"type": "image"}] * question.pictures + [{"type": "text", "text": question.text}]
            messages = [{"role": "user", "content": content}]
            if system and question.pictures:
                messages.insert(0, {"role": "system", "content": system.strip()})
            prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            prompt = "<s>" + prompt.replace("<image>", "<image>" * PATCHES).removeprefix("<s>")
            answer = [*encode(tokenizer, f" {question.answer}"), tokenizer.eos_token_id]
            ids = torch.tensor([[*encode(tokenizer, prompt), *answer]])
            own = torch.stack([some[row] for some in pictures]) if question.pictures else None
            positions = positions_of(ids[0], model.config.image_token_id, strides if question.pictures else [])
            if set(strides) == {1.0}:
                assert positions.equal(torch.arange(ids.shape[1])[None].float())
            logits = model(input_ids=ids, pixel_values=own, position_ids=positions).logits[0]
            alone[row * 1000 + number] = logits[-len(answer) - 1 : -1]
    logits, targets, index = answer_logits(model, tokenizer, features, pack(tokenizer, asked), system, strides)
    assert set(index.tolist()) == set(alone)
    for key, expected in alone.items():
        torch.testing.assert_close(logits[index == key], expected, atol=2e-4, rtol=1e-3)
    assert targets[index == 1].tolist() == [*encode(tokenizer, " blue"), tokenizer.eos_token_id]
