"""Greedy generation with both pruning stages (docs/method.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from sts_export.errors import PromptError, RequestError
from sts_export.pruning.config import PruningConfig
from sts_export.reference.decoder import PrunedDecoder, check_kept
from sts_export.reference.logits import checkpoint_processors
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import Messages, Prompt
from sts_export.reference.pruning.crops import Selection
from sts_export.reference.pruning.stage import CLS
from sts_export.reference.selecting import check_config, lower_prompt, select
from sts_export.reference.trace import Trace


@dataclass
class ReferenceResult:
    """What was generated and what was kept.

    Attributes:
        token_ids: the new tokens, with the end token if one was reached.
        text: decoded without special tokens.
        finish_reason: ``stop`` (end token) or ``length``.
        num_visual_tokens: per image N, newlines excluded.
        kept_stage1: per image its tokens kept before the LLM, ascending; CLS tokens are not listed.
        kept_stage2: tokens kept inside the LLM, ascending; image i's are offset by the N of the images before it; CLS tokens
            are not listed.
        cls_tokens: rows in the lower layers that are CLS tokens; K counts them.
        merged_into: per image, per token the token of the image that it was merged into, -1 for none; None where stage 1
            merged nothing.
        logits: [steps, vocab] float32; row i, with the checkpoint's penalties and exclusions, chose token i.
        choices: of every step the token that is chosen greedily after the tokens before it; differs from ``token_ids``
            only where those were forced.
        prompt_tokens: rows of the prompt in the lower layers: text, newlines and K visual tokens per image.
        upper_prompt_tokens: rows in the upper layers: text, newlines and K' visual tokens.
        trace: intermediate tensors of the prefill.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    num_visual_tokens: list[int]
    kept_stage1: list[list[int]]
    kept_stage2: list[int]
    cls_tokens: int
    merged_into: list[list[int]] | None
    logits: Tensor
    choices: list[int]
    prompt_tokens: int
    upper_prompt_tokens: int
    trace: Trace = field(repr=False)


@torch.no_grad()
def generate(
    model: ReferenceModel,
    prompt: str | Messages | Prompt,
    images: Sequence[Image.Image] = (),
    config: PruningConfig | None = None,
    max_new_tokens: int = 32,
    *,
    use_cache: bool = True,
    chat: bool = True,
    ignore_eos: bool = False,
    kept_stage1: Sequence[Sequence[int]] | None = None,
    kept_stage2: Sequence[int] | None = None,
    selections: Sequence[Selection] | None = None,
    seed: int = 0,
    selector: Mapping[str, Tensor] | None = None,
    forced_tokens: Sequence[int] | None = None,
) -> ReferenceResult:
    """Generate greedily, under the generation settings of the checkpoint, as transformers' ``generate(do_sample=False)``.

    Args:
        model: the loaded checkpoint.
        prompt: what the user says, a list of messages, or a :class:`Prompt` (see :meth:`ReferenceModel.prepare`).
        images: in the order of their places (part of the prompt already if that is a :class:`Prompt`).
        config: pruning; none runs the model unpruned.
        max_new_tokens: at least 1.
        use_cache: keep keys and values; otherwise every step runs the whole text again with the prefill's kept sets.
        chat: apply the chat template to a text.
        ignore_eos: go on after an end token.
        kept_stage1: use these tokens instead of stage 1's choice, one list per image; not with a stage that merges tokens
            or keeps CLS.
        kept_stage2: use these of the kept tokens (numbered as in the result) instead of stage 2's choice; what K' has beyond
            them are CLS tokens, those that stage 2 scores best.
        selections: use these rows instead of stage 1's choice, one selection per image.
        seed: of random choices, any integer.
        selector: weights of a learned selector (:func:`sts_export.reference.selector.load_selector`).
        forced_tokens: append exactly these instead of the chosen ones; logits and choices are still the model's.

    Raises:
        PromptError: see :meth:`ReferenceModel.prepare`; or stage 1 needs text and the prompt has none.
        RequestError: the configuration is for another model, a given kept set is impossible, or the selector's
            weights are missing.
    """
    check_config(model, config)
    steps = max_new_tokens if forced_tokens is None else min(max_new_tokens, len(forced_tokens))
    if steps < 1:
        raise RequestError("nothing to generate: max_new_tokens must be at least 1, and forced_tokens not empty")
    if isinstance(prompt, Prompt) and images:
        raise PromptError("a prepared prompt already holds its images: give them to ReferenceModel.prepare")
    prepared = prompt if isinstance(prompt, Prompt) else model.prepare(prompt, images, chat=chat)
    trace = Trace()
    select(model, prepared, config, kept=kept_stage1, selections=selections, seed=seed, weights=selector or {}, trace=trace)
    original = config is not None and config.positions == "original"
    lower = lower_prompt(model, prepared, trace.selections, trace.visual_embeds, original=original)
    counts = [image.num_visual_tokens for image in prepared.images]
    candidates = [token for token in lower.tokens if token != CLS]

    chosen = None
    if kept_stage2 is not None and (config is None or not candidates):
        if len(kept_stage2):
            raise RequestError("a kept set was given for stage 2, but nothing is pruned inside the LLM")
    elif kept_stage2 is not None:
        chosen = torch.tensor([lower.tokens.index(token) for token in check_kept(kept_stage2, candidates, "stage 2")])
    keep2 = sum(counts) if config is None else sum(config.keeps(count)[1] for count in counts)
    run = PrunedDecoder(model, config, use_cache, seed)
    first, stage2 = run.prefill(lower, keep2, chosen)
    trace.tokens, trace.scores, trace.hidden = lower.tokens, stage2.scores, stage2.hidden
    trace.stage2_margin = stage2.margin
    trace.positions, trace.upper_positions = lower.positions, stage2.positions
    left = [lower.tokens[index] for index in stage2.chosen.tolist()]

    logits = [first]
    tokens, choices = list[int](), list[int]()
    ends = [] if ignore_eos else sorted(model.eos_tokens)
    process = checkpoint_processors(model.model.generation_config, len(prepared.ids), ends)
    finish_reason = "length"
    while True:
        choices.append(int(process(torch.tensor([[*prepared.ids, *tokens]]), logits[-1][None].clone()).argmax()))
        tokens.append(choices[-1] if forced_tokens is None else forced_tokens[len(tokens)])
        if tokens[-1] in model.eos_tokens and not ignore_eos and forced_tokens is None:
            finish_reason = "stop"
            break
        if len(tokens) >= steps:
            break
        logits.append(run.decode(model.embed(tokens[-1:])))

    return ReferenceResult(
        token_ids=tokens,
        text=model.processor.tokenizer.decode(tokens, skip_special_tokens=True),
        finish_reason=finish_reason,
        num_visual_tokens=counts,
        kept_stage1=[selection.kept for selection in trace.selections],
        kept_stage2=sorted(token for token in left if token != CLS),
        cls_tokens=lower.tokens.count(CLS),
        merged_into=trace.merged_into,
        logits=torch.stack(logits),
        choices=choices,
        prompt_tokens=len(lower.embeds),
        upper_prompt_tokens=len(stage2.rows),
        trace=trace,
    )
