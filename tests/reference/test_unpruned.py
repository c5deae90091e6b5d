"""Nothing pruned is transformers' own model, processor and generate, token by token, for every family and kind of prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from sts_export.errors import PromptError
from sts_export.reference import ReferenceModel, generate
from sts_export.testing.checkpoints import random_image, random_prompt
from tests.reference.helpers import CHECKPOINTS, SIZES, everything, own_inputs, transformers_generate, user

Models = Callable[[str], ReferenceModel]
CHATS: dict[str, tuple[list[dict[str, Any]], list[tuple[int, int]]]] = {
    "two images": ([user("Compare them.", 2)], [(84, 84), (200, 150)]),
    "three images": ([user("Which one is it?", 3)], [(300, 40), (30, 400), (640, 480)]),
    "text only": ([user("What is on the table?", 0)], []),
    "an image in every turn": (
        [user("What is it?"), {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}, user("And now?", 2)],
        [(200, 150), (84, 84), (30, 400)],
    ),
    "an image in the last turn only": (
        [user("Hello!", 0), {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}, user("What is it?")],
        [(300, 40)],
    ),
    "system, then images": (
        [
            {"role": "system", "content": [{"type": "text", "text": "Answer in one word. "}]},
            user("How many?", 2),
            {"role": "assistant", "content": [{"type": "text", "text": "Two"}]},
            user("Where is the table?", 0),
        ],
        [(84, 84), (300, 40)],
    ),
    "text chat": (
        [
            {"role": "system", "content": [{"type": "text", "text": "Be brief. "}]},
            user("Hello!", 0),
            {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
            user("How are you?", 0),
        ],
        [],
    ),
}


def check(
    model: ReferenceModel, messages: Any, own: list[dict[str, Any]], images: list[Image.Image], steps: int = 8, **choices: Any
) -> None:
    """``messages`` (a text or a chat) for the reference, ``own`` for transformers."""
    inputs = own_inputs(model, own, images)
    tokens, logits = transformers_generate(model, steps, **inputs)
    assert len(set(tokens)) > 2
    prompt = model.prepare(messages, images)
    assert prompt.ids == tuple(inputs["input_ids"][0].tolist())
    counts = [image.num_visual_tokens for image in prompt.images]
    for config, use_cache in ((None, False), (everything(model, **choices), True)):
        result = generate(model, prompt, (), config, steps, use_cache=use_cache, ignore_eos=True)
        assert result.token_ids == tokens
        torch.testing.assert_close(result.logits, logits, atol=3e-4, rtol=1e-4)
        assert result.prompt_tokens == result.upper_prompt_tokens == len(prompt.ids)
        assert result.num_visual_tokens == counts
        assert result.kept_stage1 == [list(range(count)) for count in counts]
        assert result.kept_stage2 == list(range(sum(counts)))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_one_image(models: Models, name: str, size: tuple[int, int]) -> None:
    question = random_prompt(size[0])
    check(models(name), question, [user(question)], [random_image(size[1], size)], positions="reindex", score_layer="next")


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_chats(models: Models, name: str, chat: str) -> None:
    messages, sizes = CHATS[chat]
    images = [random_image(index, size) for index, size in enumerate(sizes)]
    check(models(name), messages, messages, images, positions="keep")
    plain = [  # contents that are text alone may be plain strings
        {**message, "content": message["content"][0]["text"]} if len(message["content"]) == 1 else message
        for message in messages
    ]
    assert models(name).prepare(plain, images).ids == models(name).prepare(messages, images).ids


@pytest.mark.parametrize("name", ["vicuna", "qwen"])
def test_ids_that_are_expanded_already(models: Models, name: str) -> None:
    model = models(name)
    images = [random_image(1), random_image(2, (300, 40))]
    prompt = model.prepare("Compare them.", images)
    again = model.expand(prompt.ids, prompt.images)
    assert (again.ids, again.starts) == (prompt.ids, prompt.starts)
    assert all(prompt.ids[start] == model.image_token != prompt.ids[start - 1] for start in prompt.starts)
    with pytest.raises(PromptError, match="runs as long"):
        start = prompt.starts[0]
        model.expand([*prompt.ids[: start + 1], 5, *prompt.ids[start + 1 :]], prompt.images)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_prompts_that_do_not_fit_their_images(models: Models, name: str) -> None:
    model, image = models(name), random_image(0)
    token = model.processor.tokenizer.decode([model.image_token])
    with pytest.raises(PromptError, match="no image was given"):
        model.prepare(f"what is {token}?")
    with pytest.raises(PromptError, match="2 places for images but 1 were given"):
        model.prepare(f"what is {token}?", [image])
    with pytest.raises(PromptError, match="0 places for images but 1"):
        model.prepare("what is it?", [image], chat=False)
    with pytest.raises(PromptError, match="1 places for images but 2"):
        model.prepare([user("what?")], [image, image])
    with pytest.raises(PromptError, match="text after"):
        model.prepare(f"what is it? {token}", [image], chat=False)
    with pytest.raises(PromptError, match="empty chat"):
        model.prepare([])
    with pytest.raises(PromptError, match="already holds"):
        generate(model, model.prepare("what?", [image]), [image])


def test_a_template_that_refuses_a_role(models: Models) -> None:
    with pytest.raises(PromptError, match="Only user and assistant"):
        models("mistral").prepare([{"role": "tool", "content": "x"}])
