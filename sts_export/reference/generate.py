"""Greedy generation with both pruning stages (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from PIL import Image
from torch import Tensor

from sts_export.errors import PromptError, RequestError
from sts_export.pruning.config import PruningConfig
from sts_export.reference.decoder import LowerPrompt, PrunedDecoder, check_kept
from sts_export.reference.logits import checkpoint_processors
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import NEWLINE, Messages, Prompt
from sts_export.reference.pruning.crops import select_by_crop
from sts_export.reference.pruning.registry import find_stage1
from sts_export.reference.pruning.stage import Choices


@dataclass
class Trace:
    """Tensors between the stages of the prefill, to find where another implementation leaves the path.

    Per image, in a list:
        visual_features: [N, C]; crops: [N] int64, the crop of each; visual_embeds: [K, D]; choices: per crop what stage 1
        chose in the image's token numbers, or none where nothing was chosen (an empty list where the whole image was kept
        or the kept set was given).

    Of the whole prompt:
        scores: [V] float32, R(v) of the tokens of stage 1, image after image; positions, upper_positions: [axes, S] and
        [axes, S'] int64 in the lower and upper layers; hidden: [S', D], the rows that enter layer L.
    """

    visual_features: list[Tensor] = field(default_factory=list)
    crops: list[Tensor] = field(default_factory=list)
    visual_embeds: list[Tensor] = field(default_factory=list)
    choices: list[list[Choices | None]] = field(default_factory=list)
    scores: Tensor | None = None
    positions: Tensor | None = None
    upper_positions: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def margins(self) -> Tensor:
        """[choices] float64: how clear each choice of stage 1 was, over all crops of all images."""
        made = [crop.margins for image in self.choices for crop in image if crop is not None]
        return torch.cat(made) if made else torch.empty(0, dtype=torch.float64)


@dataclass
class ReferenceResult:
    """What was generated and what was kept.

    Attributes:
        token_ids: the new tokens, with the end token if one was reached.
        text: decoded without special tokens.
        finish_reason: ``stop`` (end token) or ``length``.
        num_visual_tokens: per image N, newlines excluded.
        kept_stage1: per image its tokens kept before the LLM, ascending.
        kept_stage2: tokens kept inside the LLM, ascending; image i's are offset by the N of the images before it.
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
        kept_stage1: use these tokens instead of stage 1's choice, one list per image.
        kept_stage2: use these of the kept tokens (numbered as in the result) instead of stage 2's choice.
        forced_tokens: append exactly these instead of the chosen ones; logits and choices are still the model's.

    Raises:
        PromptError: see :meth:`ReferenceModel.prepare`.
        RequestError: the configuration is for another model, or a given kept set is impossible.
    """
    _check_config(model, config)
    steps = max_new_tokens if forced_tokens is None else min(max_new_tokens, len(forced_tokens))
    if steps < 1:
        raise RequestError("nothing to generate: max_new_tokens must be at least 1, and forced_tokens not empty")
    if isinstance(prompt, Prompt) and images:
        raise PromptError("a prepared prompt already holds its images: give them to ReferenceModel.prepare")
    prepared = prompt if isinstance(prompt, Prompt) else model.prepare(prompt, images, chat=chat)
    trace = Trace()
    stage1 = _stage1(model, prepared, config, kept_stage1, trace)
    lower = _lower_prompt(
        model, prepared, stage1, trace.visual_embeds, original=config is not None and config.positions == "original"
    )
    counts = [image.num_visual_tokens for image in prepared.images]
    tokens_left = [sum(counts[:index]) + token for index, kept in enumerate(stage1) for token in kept]

    chosen = None
    if kept_stage2 is not None and (config is None or not tokens_left):
        if len(kept_stage2):
            raise RequestError("a kept set was given for stage 2, but nothing is pruned inside the LLM")
    elif kept_stage2 is not None:
        chosen = torch.tensor([tokens_left.index(token) for token in check_kept(kept_stage2, tokens_left, "stage 2")])
    keep2 = sum(counts) if config is None else sum(config.keeps(count)[1] for count in counts)
    run = PrunedDecoder(model, config, use_cache)
    first, stage2 = run.prefill(lower, keep2, chosen)
    trace.scores, trace.hidden = stage2.scores, stage2.hidden
    trace.positions, trace.upper_positions = lower.positions, stage2.positions

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
        kept_stage1=stage1,
        kept_stage2=[tokens_left[index] for index in stage2.chosen.tolist()],
        logits=torch.stack(logits),
        choices=choices,
        prompt_tokens=len(lower.embeds),
        upper_prompt_tokens=len(stage2.rows),
        trace=trace,
    )


def _check_config(model: ReferenceModel, config: PruningConfig | None) -> None:
    if config is None:
        return
    if config.num_layers != model.num_layers:
        raise RequestError(
            f"the pruning configuration is for {config.num_layers} layers, the checkpoint has {model.num_layers}: "
            "make a new configuration"
        )
    missing = config.stage1.needs - model.gives
    if "cls_attention" in missing:
        raise RequestError("this family's vision tower has no CLS token to attend with: choose the anchor mean or first")
    if missing:
        raise RequestError(
            f"the reference of this family does not give {min(missing)}, which stage 1 {config.stage1.name} needs"
        )


def _stage1(
    model: ReferenceModel,
    prompt: Prompt,
    config: PruningConfig | None,
    given: Sequence[Sequence[int]] | None,
    trace: Trace,
) -> list[list[int]]:
    """Kept tokens of each image, ascending; fills the visual part of the trace."""
    if given is not None and len(given) != len(prompt.images):
        raise RequestError(f"{len(given)} kept sets for stage 1, but the prompt has {len(prompt.images)} images")
    stage1: list[list[int]] = []
    for index, image in enumerate(prompt.images):
        count = image.num_visual_tokens
        seen = model.vision(image)
        kept, choices = list(range(count)), list[Choices | None]()
        if given is not None:
            kept = check_kept(given[index], range(count), "stage 1")
        elif config is not None and config.keeps(count)[0] < count:
            kept, choices = select_by_crop(
                find_stage1(config.stage1.name),
                seen.features,
                image.crops,
                config.keeps(count)[0],
                seen.tower,
                asdict(config.stage1),
            )
        stage1.append(kept)
        trace.visual_features.append(seen.features)
        trace.crops.append(image.crops)
        trace.choices.append(choices)
        trace.visual_embeds.append(model.project(seen.features[kept]))
    return stage1


def _lower_prompt(
    model: ReferenceModel, prompt: Prompt, stage1: list[list[int]], embeds: list[Tensor], *, original: bool
) -> LowerPrompt:
    """The unpruned prompt without the rows that stage 1 dropped: embeds are [K, D] per image."""
    rows = model.embed(prompt.ids)
    left = torch.ones(len(rows), dtype=torch.bool)
    visual = torch.zeros(len(rows), dtype=torch.bool)
    for image, start, kept, own in zip(prompt.images, prompt.starts, stage1, embeds, strict=True):
        layout = torch.tensor(image.layout)
        block = slice(start, start + len(layout))
        stays = torch.isin(layout, torch.tensor(kept))  # NEWLINE is no token's number
        visual[block] = stays
        left[block] = stays | (layout == NEWLINE)
        rows[start + stays.nonzero()[:, 0]] = own  # layout numbers and kept sets both ascend
        if bool((layout == NEWLINE).any()):
            rows[start + (layout == NEWLINE).nonzero()[:, 0]] = model.newline()
    stayed = left.nonzero()[:, 0]
    positions, following = model.positions(prompt, stayed, original=original)
    return LowerPrompt(rows[left], positions, following, visual[left].nonzero()[:, 0], bool(left.all()))
