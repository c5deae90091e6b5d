"""Stage 1 of a whole prompt, and the prompt that it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from sts_export.errors import RequestError
from sts_export.graphs.needs import OF_SELECTOR
from sts_export.pruning.config import PruningConfig
from sts_export.reference.decoder import LowerPrompt, check_kept
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import NEWLINE, ImageInput, Prompt, VisualFeatures
from sts_export.reference.pruning.crops import Request, Selection, select_by_crop
from sts_export.reference.pruning.registry import find_stage1
from sts_export.reference.pruning.stage import CLS
from sts_export.reference.trace import Trace


def check_config(model: ReferenceModel, config: PruningConfig | None) -> None:
    """Raises RequestError if the configuration is for another model, or stage 1 needs what the family does not give."""
    if config is None:
        return
    if config.num_layers != model.num_layers:
        raise RequestError(
            f"the pruning configuration is for {config.num_layers} layers, the checkpoint has {model.num_layers}: "
            "make a new configuration"
        )
    missing = config.stage1.needs - model.gives - OF_SELECTOR
    if "cls_attention" in missing and config.stage1.name == "repulsion":
        raise RequestError("this family's vision tower has no CLS token to attend with: choose the anchor mean or first")
    if missing:
        raise RequestError(
            f"the reference of this family does not give {min(missing)}, which stage 1 {config.stage1.name} needs"
        )


def select(
    model: ReferenceModel,
    prompt: Prompt,
    config: PruningConfig | None,
    *,
    kept: Sequence[Sequence[int]] | None,
    selections: Sequence[Selection] | None,
    seed: int,
    weights: Mapping[str, Tensor],
    trace: Trace,
) -> None:
    """Fill the visual part of the trace.

    Args:
        kept: the tokens of each image, instead of stage 1's choice.
        selections: the rows of each image, instead of stage 1's choice.

    Raises:
        PromptError: stage 1 needs text and the prompt has none.
        RequestError: what is given instead of stage 1's choice is impossible.
    """
    for given in (kept, selections):
        if given is not None and len(given) != len(prompt.images):
            raise RequestError(f"{len(given)} kept sets for stage 1, but the prompt has {len(prompt.images)} images")
    needs = frozenset() if config is None else config.stage1.needs
    if kept is not None and config is not None and (config.stage1.merges or "cls_features" in needs):
        raise RequestError(f"stage 1 {config.stage1.name} leaves more than a set of tokens: give selections")
    text = model.embed([token for token in prompt.ids if token != model.image_token])
    request = Request(model.project, text, seed, weights)
    for index, image in enumerate(prompt.images):
        count = image.num_visual_tokens
        drops = config is not None and config.keeps(count)[0] < count
        chooses = drops and kept is None and selections is None
        seen = model.vision(image, needs - OF_SELECTOR if chooses else frozenset())
        selection = Selection(list(range(count)), seen.features)
        trace.choices.append([])
        if selections is not None:
            selection = selections[index]
            check_kept(selection.kept, range(count), "stage 1")
        elif kept is not None:
            tokens = check_kept(kept[index], range(count), "stage 1")
            selection = Selection(tokens, seen.features[tokens])
        elif chooses and config is not None:
            selection = _chosen(model, config, image, seen, request, trace)
        trace.visual_features.append(seen.features)
        trace.crops.append(image.crops)
        trace.selections.append(selection)
        trace.visual_embeds.append(model.project(selection.features.to(seen.features.dtype)))


def _chosen(
    model: ReferenceModel, config: PruningConfig, image: ImageInput, seen: VisualFeatures, request: Request, trace: Trace
) -> Selection:
    selection, trace.choices[-1] = select_by_crop(
        find_stage1(config.stage1.name),
        seen.features,
        image.crops,
        config.keeps(image.num_visual_tokens)[0],
        seen.tower,
        asdict(config.stage1),
        places=image.places,
        grid=image.grid,
        alone=model.one_crop,
        cls=seen.cls,
        request=request,
    )
    return selection


def lower_prompt(
    model: ReferenceModel, prompt: Prompt, selections: Sequence[Selection], embeds: Sequence[Tensor], *, original: bool
) -> LowerPrompt:
    """The prompt as stage 1 leaves it.

    A CLS token stands before the first row of its picture, and for that row where positions are the original ones.

    Args:
        embeds: [K, D] of each image, in the order of its selection.
    """
    words = model.embed(prompt.ids)
    sources, rows, tokens = list[int](), list[Tensor](), list[int | None]()

    def add(source: int, row: Tensor, token: int | None) -> None:
        sources.append(source)
        rows.append(row)
        tokens.append(token)

    done = offset = 0
    for image, start, selection, own in zip(prompt.images, prompt.starts, selections, embeds, strict=True):
        for source in range(done, start):
            add(source, words[source], None)
        place = {token: row for row, token in enumerate(image.layout, start)}
        of_token = dict(zip(selection.order, own, strict=True))
        middle, last = selection.order[selection.cls_tokens :], list[int]()
        if selection.last:
            middle, last = middle[: -selection.last], middle[-selection.last :]
        in_order = set(middle)
        for row in own[: selection.cls_tokens]:
            add(start, row, CLS)
        for source, token in enumerate(image.layout, start):
            if token == NEWLINE:
                add(source, model.newline(), None)
            elif token in in_order:
                add(source, of_token[token], offset + token)
        for token in last:
            add(place[token], of_token[token], offset + token)
        done, offset = start + len(image.layout), offset + image.num_visual_tokens
    for source in range(done, len(prompt.ids)):
        add(source, words[source], None)

    every = torch.tensor(sources)
    positions, following = model.positions(prompt, every, original=original)
    ids = torch.tensor(prompt.ids)
    visual = [row for row, token in enumerate(tokens) if token is not None]
    return LowerPrompt(
        torch.stack(rows),
        positions,
        following,
        torch.tensor(visual, dtype=torch.int64),
        ids[every] != model.image_token,
        [token for token in tokens if token is not None],
        sources == list(range(len(prompt.ids))),
    )
