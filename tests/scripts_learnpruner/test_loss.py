"""Packed sequences against transformers: its own forward pass, and its decoder without the rows of dropped tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.learnpruner.conversations import IMAGE, Conversation, Turn
from scripts.learnpruner.loss import answer_logits, use_masked_attention
from scripts.learnpruner.masked_attention import NAME
from scripts.learnpruner.sequences import IGNORED, Group, Packed, grouped, pack
from sts_export.reference import ReferenceModel
from sts_export.reference.prompt import ImageInput
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

torch.set_num_threads(1)
ASKED = [("What is on the table?", "a cat"), ("Where is the cat?", "the table")]
QWEN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>{}<|vision_end|>"
# The prompt up to where the answer begins, as the template has it, and what is between prompt and answer.
TEXTS: dict[str, tuple[str, str]] = {
    "llava": ("<s>USER: {}\n{} ASSISTANT:", " "),
    "llava_next": ("<s>USER: {}\n{} ASSISTANT:", " "),
    "qwen2_5_vl": (QWEN + "{}<|im_end|>\n<|im_start|>assistant\n", ""),
}
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": lambda folder: write_random_llava(folder, RandomLlava(seed=3)),
    "llava_next": lambda folder: write_random_llava_next(folder, RandomLlavaNext(seed=4, decoder="vicuna")),
    "qwen2_5_vl": lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(seed=5)),
}


class Family:
    """A random checkpoint, one picture, and two questions about it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.model = ReferenceModel.open(WRITERS[name](folder))
        self.image: ImageInput = self.model.process(random_image(8, (90, 200)))
        turns = [(Turn("user", (IMAGE, question)), Turn("assistant", (answer,))) for question, answer in ASKED]
        self.group: Group = grouped([Conversation((Path("a.png"),), both) for both in turns])[0]
        packed = pack(self.model, self.group, [0, 1], [self.image], 2048)
        assert packed is not None
        self.packed: Packed = packed
        self.features = self.model.vision(self.image).features

    def text(self, number: int) -> list[int]:
        """Ids of one conversation, by hand."""
        form, between = TEXTS[self.name]
        tokenizer = self.model.processor.tokenizer
        token = tokenizer.convert_ids_to_tokens(self.model.image_token)
        question, answer = ASKED[number]
        whole = form.format(token * len(self.image.layout), question) + between + answer
        return [*tokenizer(whole, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    def theirs(self, ids: list[int], dropped: Tensor) -> Tensor:
        """Logits of all rows by transformers; where tokens are dropped their rows do not exist, and the others' positions
        are those of the whole prompt."""
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids]), "pixel_values": self.image.pixel_values}
        if self.name == "llava_next":
            inputs |= {"pixel_values": self.image.pixel_values[None], "image_sizes": torch.tensor([self.image.size])}
        if self.name == "qwen2_5_vl":
            inputs |= {"image_grid_thw": torch.tensor([self.image.size])}
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.model.image_token).int()
        decoder = self.model.decoder
        given: dict[str, Any] = {}
        handle = decoder.register_forward_pre_hook(lambda _module, _args, kwargs: given.update(kwargs), with_kwargs=True)
        decoder.config._attn_implementation = "sdpa"
        try:
            full: Tensor = self.model.model(**inputs).logits[0]
        finally:
            handle.remove()
        if not len(dropped):
            return full
        rows = torch.tensor([row for row in range(len(ids)) if row not in set(dropped.tolist())])
        positions = given["position_ids"]
        positions = torch.arange(len(ids))[None] if positions is None else positions
        hidden = decoder(inputs_embeds=given["inputs_embeds"][:, rows], position_ids=positions[..., rows]).last_hidden_state
        logits = torch.full_like(full, torch.nan)
        logits[rows] = self.model.model.lm_head(hidden)[0]
        return logits


@pytest.fixture(scope="module", params=list(WRITERS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_logits_without_dropped_tokens(family: Family, share: float) -> None:
    keep = (torch.rand(len(family.features), generator=torch.Generator().manual_seed(1)) < share).float()
    rows = family.packed.visual[0]
    expected, targets = [], []
    for number in range(len(ASKED)):
        ids = family.text(number)
        between = TEXTS[family.name][1]
        said = family.model.processor.tokenizer(between + ASKED[number][1], add_special_tokens=False)["input_ids"]
        answer = len(said)
        expected.append(family.theirs(ids, rows[keep == 0])[-2 - answer : -1])
        targets += ids[-1 - answer :]
    use_masked_attention(family.model)
    assert family.model.decoder.config._attn_implementation == NAME
    logits = answer_logits(family.model, family.packed, [family.features], [keep])
    assert family.packed.targets[family.packed.targets != IGNORED].tolist() == targets
    torch.testing.assert_close(logits, torch.cat(expected), atol=2e-3, rtol=1e-3)


def test_two_pictures(tmp_path: Path) -> None:
    """Both before the question; the second answer's segment begins with the first question and its answer."""
    model = ReferenceModel.open(WRITERS["llava"](tmp_path))
    images = [model.process(random_image(seed)) for seed in (1, 2)]
    (first, said), (second, answer) = ASKED
    turns = (Turn("user", (IMAGE, IMAGE, first)), Turn("assistant", (said,)), Turn("user", (second,)))
    conversation = Conversation((Path("a.png"), Path("b.png")), (*turns, Turn("assistant", (answer,))))
    packed = pack(model, grouped([conversation])[0], [1], images, 2048)
    assert packed is not None
    features = [model.vision(image).features for image in images]
    tokenizer = model.processor.tokenizer
    picture = "<image>" * len(features[0])
    text = f"<s>USER: {picture}\n{picture}\n{first} ASSISTANT: {said} USER: {second} ASSISTANT: {answer}</s>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    targets = packed.targets[packed.targets != IGNORED]
    assert packed.ids.tolist() == ids[:-1] and targets.tolist() == ids[-len(targets) :]
    assert tokenizer.decode(targets).strip() == f"{answer}</s>"
    pixels = torch.cat([image.pixel_values for image in images])
    theirs = model.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1 - len(targets) : -1]
    use_masked_attention(model)
    ours = answer_logits(model, packed, features, [torch.ones(len(own)) for own in features])
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


def test_newlines_are_no_visual_tokens(family: Family) -> None:
    rows, newlines = family.packed.visual[0], family.packed.newlines
    assert len(rows) == family.image.num_visual_tokens
    assert (len(newlines) > 0) == (family.name == "llava_next")
    both = torch.cat([rows, newlines]).sort().values
    assert torch.equal(both, (family.packed.ids == family.model.image_token).nonzero()[:, 0])


def test_too_long(family: Family) -> None:
    rows = len(family.text(0)) - 1
    assert pack(family.model, family.group, [0, 1], [family.image], rows - 1) is None
    one = pack(family.model, family.group, [0, 1], [family.image], rows)
    assert one is not None and len(one.ids) == rows


def test_gradient_says_what_a_token_is_worth(family: Family) -> None:
    """Of the loss by each token's mask, against the loss with just that token shown or hidden."""
    use_masked_attention(family.model)
    targets = family.packed.targets[family.packed.targets != IGNORED]

    def loss(mask: Tensor) -> Tensor:
        logits = answer_logits(family.model, family.packed, [family.features], [mask])
        return torch.nn.functional.cross_entropy(logits, targets)

    keep = (torch.rand(len(family.features), generator=torch.Generator().manual_seed(2)) < 0.5).float().requires_grad_()
    loss(keep).backward()  # type: ignore[no-untyped-call]
    assert keep.grad is not None
    true = []
    with torch.no_grad():
        before = loss(keep.detach())
        for token in range(min(len(keep), 40)):
            other = keep.detach().clone()
            other[token] = 1 - other[token]
            true.append((loss(other) - before) * (1 if other[token] else -1))
    guess, truth = keep.grad[: len(true)], torch.stack(true)
    hidden = keep.detach()[: len(true)] == 0
    for tokens in (hidden, ~hidden):
        assert torch.corrcoef(torch.stack([guess[tokens], truth[tokens]]))[0, 1] > 0.5
