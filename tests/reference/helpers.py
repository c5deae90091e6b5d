"""What transformers itself computes for the same prompts: the other side of the comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import Qwen2_5_VLProcessor

from sts_export.pruning.choosing import config_for_counts
from sts_export.pruning.config import PruningConfig
from sts_export.reference import NEWLINE, Prompt, ReferenceModel, ReferenceResult
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

SIZES = [(84, 84), (300, 40), (30, 400), (200, 150), (640, 480)]  # (width, height)
CHECKPOINTS: dict[str, tuple[Any, Any]] = {
    "llava": (write_random_llava, RandomLlava()),
    "vicuna": (write_random_llava_next, RandomLlavaNext(layout="4.x")),
    "mistral": (write_random_llava_next, RandomLlavaNext(seed=5, decoder="mistral", kv_heads=1, layers=5)),
    "qwen": (write_random_qwen2_5_vl, RandomQwen25VL()),
    "qwen_tied": (write_random_qwen2_5_vl, RandomQwen25VL(seed=6, tied_embeddings=True, layers=5, layout="4.x")),
}


class QwenProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """transformers' own, which takes no missing video processor (that one wants torchvision)."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None: ...


def own_processor(model: ReferenceModel) -> Any:
    """The processor transformers has for the family."""
    parts = model.processor
    if not model.model.config.model_type.startswith("qwen"):
        return parts
    return QwenProcessor(parts.image_processor, parts.tokenizer, None, chat_template=parts.chat_template)


def own_inputs(model: ReferenceModel, messages: list[dict[str, Any]], images: Sequence[Image.Image]) -> dict[str, Any]:
    """Inputs of transformers' model for a chat, made by transformers' processor and template alone."""
    processor = own_processor(model)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return dict(processor(text=text, images=list(images) or None, return_tensors="pt"))


def user(text: str, images: int = 1) -> dict[str, Any]:
    """A user's turn with its images first."""
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def transformers_generate(model: ReferenceModel, steps: int, **inputs: Any) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and their logits [steps, vocab]."""
    out = model.model.generate(
        **inputs,
        max_new_tokens=steps,
        eos_token_id=10**6,  # never
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, -steps:].tolist(), torch.cat(out.logits)


def config_for(model: ReferenceModel, keep1: int, keep2: int, prune_layer: int = 2, **choices: Any) -> PruningConfig:
    return config_for_counts(model.num_visual_tokens, model.num_layers, prune_layer, keep1, keep2, **choices)


def everything(model: ReferenceModel, **choices: Any) -> PruningConfig:
    """K = K' = N."""
    return config_for(model, model.num_visual_tokens, model.num_visual_tokens, **choices)


def decoder_inputs(model: ReferenceModel, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers' model hands to its decoder for the whole prompt: embeddings [S, D], positions [axes, S]."""
    seen: dict[str, Any] = {}

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    hook = model.decoder.register_forward_pre_hook(look, with_kwargs=True)
    try:
        model.model.model.rope_deltas = None
        model.model(**inputs)
    finally:
        hook.remove()
    embeds, positions = seen["inputs_embeds"][0], seen["position_ids"]
    return embeds, torch.arange(len(embeds))[None] if positions is None else positions[-3:, 0]


def surviving(prompt: Prompt, kept_stage1: Sequence[Sequence[int]], kept_stage2: Sequence[int]) -> tuple[list[int], list[bool]]:
    """Rows of the unpruned prompt that stage 1 leaves, and of each whether stage 2 leaves it."""
    fate: dict[int, bool | None] = dict.fromkeys(range(len(prompt.ids)), True)
    offset = 0
    for image, start, kept in zip(prompt.images, prompt.starts, kept_stage1, strict=True):
        for row, token in enumerate(image.layout, start):
            if token != NEWLINE:
                fate[row] = None if token not in kept else offset + token in kept_stage2
        offset += image.num_visual_tokens
    rows = [row for row, alive in fate.items() if alive is not None]
    return rows, [bool(fate[row]) for row in rows]


def masked_logits(
    model: ReferenceModel, inputs: dict[str, Any], prompt: Prompt, config: PruningConfig, result: ReferenceResult
) -> torch.Tensor:
    """Logits of all steps from one run of transformers' whole decoder in which stage 2 drops nothing.

    In the upper layers, hooks hide the dropped rows with a mask and give the others their positions.
    """
    whole, positions = decoder_inputs(model, inputs)
    rows, alive_rows = surviving(prompt, result.kept_stage1, result.kept_stage2)
    new = len(result.token_ids) - 1
    embeds = torch.cat([whole[rows], model.embed(result.token_ids[:-1])])[None]
    length = embeds.shape[1]
    if len(positions) == 3 or config.positions == "original":
        following = torch.arange(int(positions.max()) + 1, int(positions.max()) + 1 + new)
        lower = torch.cat([positions[:, rows], following.expand(len(positions), -1)], dim=1)
        lower = lower[:, None] if len(positions) == 3 else lower
    else:
        lower = torch.arange(length)[None]
    alive = torch.tensor(alive_rows + [True] * new)
    contiguous = (alive.cumsum(0) - 1).clamp(min=0).expand_as(lower)
    blocked = torch.ones(length, length, dtype=torch.bool).triu(1) | ~alive[None, :]
    blocked &= ~torch.eye(length, dtype=torch.bool)  # dropped rows look at themselves; nobody reads them
    mask = torch.zeros(1, 1, length, length).masked_fill(blocked, torch.finfo(torch.float32).min)

    def upper(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rotary = model.decoder.rotary_emb(embeds, position_ids=contiguous if config.positions == "reindex" else lower)
        return args, {**kwargs, "attention_mask": mask, "position_embeddings": rotary}

    hooks = [layer.register_forward_pre_hook(upper, with_kwargs=True) for layer in model.decoder.layers[config.prune_layer :]]
    try:
        # An explicit mask: without one, transformers takes gaps between positions for borders of packed sequences.
        every = torch.ones(1, length, dtype=torch.int64)
        run = model.decoder(inputs_embeds=embeds, attention_mask=every, position_ids=lower, use_cache=False)
        hidden = run.last_hidden_state[0]
    finally:
        for hook in hooks:
            hook.remove()
    logits: torch.Tensor = model.model.lm_head(hidden[-len(result.token_ids) :]).float()
    return logits
