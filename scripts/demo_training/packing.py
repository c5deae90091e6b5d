"""Many questions about one picture (or two) in one sequence.

    <s>USER: <visual tokens> | \\nquestion ASSISTANT: answer</s> | \\nquestion ASSISTANT: answer</s> | …

Every segment attends to the prefix and to itself, and its positions continue the prefix's. That is exactly the sum of
the separate conversations, at the price of little more than one.  A segment about no picture is a conversation of its own:
it attends to itself only, from position 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from scripts.demo_training.model import ANSWER, BOS, QUESTION
from sts_export.demo.questions import Question

sdpa = nn.functional.scaled_dot_product_attention
IGNORED = -100
# Sequences are padded to a multiple: every new length costs oneDNN new kernels.
MULTIPLE = 64


@dataclass(frozen=True)
class Packed:
    """Segments of a batch, padded to T tokens.

    tokens: [b, T] int64; segment: [b, T] int64 (-1: padding); offset: [b, T] int64, position within the segment;
    target: [b, T] int64, next token where it is part of an answer, else IGNORED; alone: [b, T] int64, 1 in segments
    about no picture.
    """

    tokens: Tensor
    segment: Tensor
    offset: Tensor
    target: Tensor
    alone: Tensor

    def padded(self, extra: int) -> Packed:
        """`extra` more columns of padding."""
        fill = {"tokens": 0, "segment": -1, "offset": 0, "target": IGNORED, "alone": 0}
        parts = {name: nn.functional.pad(getattr(self, name), (0, extra), value=value) for name, value in fill.items()}
        return Packed(**parts)

    def mask(self, prefix: int) -> Tensor:
        """Additive mask [b, 1, T, prefix + T]: own segment up to oneself, and the whole prefix unless alone."""
        length = self.tokens.shape[1]
        own = self.segment[:, :, None] == self.segment[:, None, :]
        own &= torch.ones(length, length, dtype=torch.bool).tril()
        before = (self.alone == 0)[:, :, None].expand(-1, -1, prefix)
        allowed = torch.cat([before, own], -1)
        return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)[:, None]

    def positions(self, strides: Tensor) -> Tensor:
        """[b, prefix + T] of the dtype of ``strides`` [prefix]: from each token of the prefix to the next position."""
        ends = strides.cumsum(0)
        before = (ends - strides).expand(len(self.tokens), -1)
        return torch.cat([before, torch.where(self.alone == 1, 0, ends[-1]) + self.offset], 1)


def pack(tokenizer: PreTrainedTokenizerFast, batch: list[list[Question]]) -> Packed:
    """Tokenize and pad; question text and answer are exactly what the chat template yields."""
    rows: list[list[tuple[int, int, int, int, int]]] = []
    for questions in batch:
        row: list[tuple[int, int, int, int, int]] = []
        for number, question in enumerate(questions):
            alone = int(question.pictures == 0)
            form = f"{BOS}USER: {{}} ASSISTANT:" if alone else QUESTION
            asked = encode(tokenizer, form.format(question.text))
            answer = [*encode(tokenizer, ANSWER.format(question.answer)), tokenizer.eos_token_id]
            tokens = [*asked, *answer]
            targets = [IGNORED] * (len(asked) - 1) + answer + [IGNORED]
            row += [(t, number, i, y, alone) for i, (t, y) in enumerate(zip(tokens, targets, strict=True))]
        rows.append(row)
    length = max(map(len, rows))
    pad = (tokenizer.pad_token_id, -1, 0, IGNORED, 0)
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
    head = sdpa(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True)
    tail = sdpa(query[:, :, prefix:], key, value, attn_mask=attention_mask)
    return torch.cat([head, tail], 2).transpose(1, 2), None


AttentionInterface.register("packed", packed_attention)


def answer_logits(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pictures: list[Tensor],
    packed: Packed,
    system: str = "",
    strides: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the answers' tokens.

    Args:
        pictures: one tensor [b, n, width] of visual features, before the projector, for each picture of a conversation.
        system: what stands before the user's turn, with a space at its end.
        strides: rotary positions that a token of each picture takes; None: 1, as transformers has it.

    Returns:
        logits [m, vocab], targets [m], and index [m] = row · 1000 + segment of each.
    """
    language = model.model.language_model
    model.config.text_config._attn_implementation = "packed"
    batch = len(packed.tokens)

    def embedded(text: str) -> Tensor:
        ids = torch.tensor(encode(tokenizer, text)).expand(batch, -1)
        words: Tensor = language.embed_tokens(ids)
        return words

    parts, taken = [embedded(f"{BOS}{system}USER: ")], [1.0]
    for number, (features, stride) in enumerate(zip(pictures, strides or [1.0] * len(pictures), strict=True)):
        parts += [embedded("\n")] * (number > 0) + [model.model.multi_modal_projector(features)]
        taken += [1.0] * (number > 0) + [stride]
    prefix = sum(part.shape[1] for part in parts)
    each = torch.cat([torch.full((part.shape[1],), stride) for part, stride in zip(parts, taken, strict=True)])
    packed = packed.padded(-(prefix + packed.tokens.shape[1]) % MULTIPLE)
    hidden = torch.cat([*parts, language.embed_tokens(packed.tokens)], 1)
    out = language(
        inputs_embeds=hidden,
        attention_mask=packed.mask(prefix),
        position_ids=packed.positions(each),
        use_cache=False,
    )
    rows, columns = torch.nonzero(packed.target != IGNORED, as_tuple=True)
    logits = model.lm_head(out.last_hidden_state[rows, prefix + columns])
    return logits, packed.target[rows, columns], rows * 1000 + packed.segment[rows, columns]
