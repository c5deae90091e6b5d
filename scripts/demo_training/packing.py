"""Many questions about one picture in one sequence.

    <s>USER: <visual tokens> | \\nquestion ASSISTANT: answer</s> | \\nquestion ASSISTANT: answer</s> | …

Every segment attends to the prefix and to itself, and its positions continue the prefix's. That is exactly the sum of
the separate conversations, at the price of little more than one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from scripts.demo_training.model import ANSWER, PREFIX, QUESTION
from sts_export.demo.questions import Question
from sts_export.demo.world import COLORS, SHAPES

sdpa = nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class Packed:
    """Segments of a batch, padded to T tokens.

    tokens: [b, T] int64; segment: [b, T] int64 (-1: padding); offset: [b, T] int64, position within the segment;
    target: [b, T] int64, next token where it is part of an answer, else -100.
    """

    tokens: Tensor
    segment: Tensor
    offset: Tensor
    target: Tensor

    def mask(self, prefix: int) -> Tensor:
        """Additive mask [b, 1, T, prefix + T]: own segment up to oneself, and the whole prefix."""
        length = self.tokens.shape[1]
        own = self.segment[:, :, None] == self.segment[:, None, :]
        own &= torch.ones(length, length, dtype=torch.bool).tril()
        allowed = torch.cat([torch.ones(len(own), length, prefix, dtype=torch.bool), own], -1)
        return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)[:, None]


def pack(tokenizer: PreTrainedTokenizerFast, batch: list[list[Question]]) -> Packed:
    """Tokenize and pad; question text and answer are exactly what the chat template yields."""
    rows: list[list[tuple[int, int, int, int]]] = []
    for questions in batch:
        row: list[tuple[int, int, int, int]] = []
        for number, question in enumerate(questions):
            ask = encode(tokenizer, QUESTION.format(question.text))
            answer = [*encode(tokenizer, ANSWER.format(question.answer)), tokenizer.eos_token_id]
            tokens = [*ask, *answer]
            targets = [-100] * (len(ask) - 1) + answer + [-100]
            row += [(t, number, i, y) for i, (t, y) in enumerate(zip(tokens, targets, strict=True))]
        rows.append(row)
    length = max(map(len, rows))
    pad = (tokenizer.pad_token_id, -1, 0, -100)
    packed = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    return Packed(*packed.unbind(-1))


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Causal in the prefix, `Packed.mask` after it: two kernels, because only the first can skip half of its work."""
    prefix = query.shape[2] - attention_mask.shape[2]
    layer = module.layer_idx
    assert isinstance(layer, int)
    if layer in WATCHED:
        WATCHED[layer] = (query[:, :, prefix:], key)
    head = sdpa(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True)
    tail = sdpa(query[:, :, prefix:], key, value, attn_mask=attention_mask)
    return torch.cat([head, tail], 2).transpose(1, 2), None


# Queries (after the prefix) and keys of the layers whose attention is guided, from the latest forward pass.
WORD_LAYER, SUBJECT_LAYER, ANSWER_LAYERS = 1, 2, (3, 5)
WATCHED: dict[int, tuple[Tensor, Tensor]] = dict.fromkeys(
    (WORD_LAYER, SUBJECT_LAYER, *ANSWER_LAYERS), (torch.empty(0), torch.empty(0))
)
GUIDED_HEADS = 2  # of four: the others stay free


def attention_loss(packed: Packed, guides: dict[int, Guide], before: int) -> tuple[Tensor, float]:
    """Cross entropy between where tokens should look and where they do, in the guided heads of the guided layers.

    The choice is between the visual tokens that prove something and the tokens before the picture: looking there says
    "nothing found", which makes presence a matter of how much attention found something.

    Args:
        guides: layer -> what its tokens should look at.
        before: number of tokens before the visual ones.

    Returns:
        The loss, averaged over tokens and layers, and the mean attention on proving tokens where all should be.
    """
    losses, found = [], []
    for layer, guide in guides.items():
        query, key = (heads[:, :GUIDED_HEADS] for heads in WATCHED[layer])
        rows, columns = torch.nonzero(guide.share >= 0, as_tuple=True)
        prefix = before + guide.proof.shape[-1]
        mask = packed.mask(prefix)[rows, 0, columns][:, None]
        wanted = guide.proof[rows, columns][:, None]
        share = guide.share[rows, columns]
        picked = query.transpose(1, 2)[rows, columns]  # [tokens, heads, head_dim]
        scores = torch.einsum("thd,thnd->thn", picked, key[rows]) * key.shape[-1] ** -0.5 + mask
        attention = scores.softmax(-1)
        nothing = attention[..., :before].sum(-1).mean(1).clamp(min=1e-6)
        proof = (attention[..., before:prefix] * wanted).sum(-1).mean(1).clamp(min=1e-6)
        losses.append((-share * proof.log() - (1 - share) * nothing.log()).mean())
        found.append(proof[share == 1].mean().item())
    return torch.stack(losses).mean(), sum(found) / len(found)


@dataclass(frozen=True)
class Guide:
    """proof: [b, T, n] bool, the visual tokens that prove the next token; share: [b, T] float32, how much of the
    attention belongs there (the rest before the picture), -1 where it is free."""

    proof: Tensor
    share: Tensor


def make_guides(
    questions: list[list[Question]], packed: Packed, labels: Tensor, words: dict[int, tuple[int, int]]
) -> dict[int, Guide]:
    """Layer -> guide. `words` maps tokens that name a shape or colour to (label channel, class).

    A word looks at what it names; the last word of a subject at what all of it names; an answer at what proves it.
    """
    channel = torch.full((max(words) + 2,), -1)
    kind = torch.full((max(words) + 2,), -1)
    for token, (number, label) in words.items():
        channel[token], kind[token] = number, label
    tokens = packed.tokens.clamp(max=max(words) + 1)
    which = channel[tokens]
    named = (which >= 0) & (packed.target == -100) & (packed.segment >= 0)
    batch = torch.arange(len(tokens))[:, None]
    proof = labels[..., :2].transpose(1, 2)[batch, which.clamp(min=0)] == kind[tokens][..., None]
    proof &= named[..., None]
    word = Guide(proof, torch.where(named, proof.any(-1).float(), -1.0))
    previous, following = named.roll(1, 1), named.roll(-1, 1)
    whole = torch.where((named & previous)[..., None], proof & proof.roll(1, 1), proof)
    last = named & ~following
    share = torch.where(last, whole.any(-1).float(), -1.0)
    guides = {WORD_LAYER: word, SUBJECT_LAYER: Guide(whole, share)}
    answers = make_guide(questions, packed, labels)
    return guides | dict.fromkeys(ANSWER_LAYERS, answers)


def make_guide(questions: list[list[Question]], packed: Packed, labels: Tensor) -> Guide:
    """Where to look for the answers, from the dense labels [b, n, ·] of the visual tokens."""
    proof = torch.zeros(*packed.tokens.shape, labels.shape[1], dtype=torch.bool)
    share = torch.full(packed.tokens.shape, -1.0)
    for b, asked in enumerate(questions):
        answers = packed.target[b] != -100
        for number, question in enumerate(asked):
            columns = torch.nonzero(answers & (packed.segment[b] == number)).flatten().tolist()
            if question.kind == "reading":  # the space, then one token for each letter, then the end
                for slot, column in enumerate(columns[1:-1]):
                    proof[b, column] = labels[b, :, 3] == slot + 1
                    share[b, column] = 1.0
                continue
            letters = question.kind == "count"
            proof[b, columns[:-1]] = labels[b, :, 2] > 0 if letters else named_in(question.text, labels[b])
            found = {"presence": float(question.answer == "yes")}.get(question.kind, 1.0)
            share[b, columns[:-1]] = found
    share[(share > 0) & ~proof.any(-1)] = -1.0
    return Guide(proof, share)


def named_in(text: str, labels: Tensor) -> Tensor:
    """[n] bool: the patches of the objects that a question names."""
    words = re.findall(r"[a-z]+", text)
    match = labels[:, 0] > 0
    for channel, names in ((0, SHAPES), (1, tuple(COLORS))):
        for i, name in enumerate(names):
            if name in words:
                match = match & (labels[:, channel] == i + 1)
    return match


AttentionInterface.register("packed", packed_attention)


def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
    """Hidden state -2 of the vision tower [b, 577, width], without computing the unused last layer.

    With `keep` [b, k] the tower sees only those patches and the CLS token, and returns [b, 1 + k, width].
    """
    tower = model.model.vision_tower
    hidden: Tensor = tower.pre_layrnorm(tower.embeddings(pixels))
    if keep is not None:
        hidden = torch.cat([hidden[:, :1], torch.take_along_dim(hidden[:, 1:], keep[..., None], 1)], 1)
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden


def answer_logits(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, visual: Tensor, packed: Packed
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the answers' tokens.

    Args:
        visual: [b, n, width] features of the visual tokens, before the projector.

    Returns:
        logits [m, vocab], targets [m], and index [m] = row · 1000 + segment of each.
    """
    language = model.model.language_model
    model.config.text_config._attn_implementation = "packed"
    embed = language.embed_tokens
    batch, count = visual.shape[:2]
    before = torch.tensor(encode(tokenizer, PREFIX)[:-1]).expand(batch, -1)
    hidden = torch.cat([embed(before), model.model.multi_modal_projector(visual), embed(packed.tokens)], 1)
    prefix = before.shape[1] + count
    positions = torch.cat([torch.arange(prefix).expand(batch, -1), prefix + packed.offset], 1)
    out = language(inputs_embeds=hidden, attention_mask=packed.mask(prefix), position_ids=positions, use_cache=False)
    rows, columns = torch.nonzero(packed.target != -100, as_tuple=True)
    logits = model.lm_head(out.last_hidden_state[rows, prefix + columns])
    return logits, packed.target[rows, columns], rows * 1000 + packed.segment[rows, columns]
