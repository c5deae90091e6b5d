"""Greedy generation with both pruning stages (METHOD, "Stage 2" and "Positions").

Decoder layers 0..L-1 (lower) run on the prompt with K visual tokens, layers L..T-1 (upper) on what stage 2 leaves of it.
Every layer is transformers' own LlamaDecoderLayer; masks and positions are explicit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sts_export.errors import PromptError, RequestError
from sts_export.pruning import PruningConfig
from sts_export.reference.model import Prompt, ReferenceModel
from sts_export.reference.stages import Repulsion, last_token_scores, repulsion_trace, top_positions


@dataclass
class Trace:
    """Tensors between the stages of the prefill, to find where another implementation leaves the path.

    visual_features: [N, C]; visual_embeds: [K, D]; saliency: [N] float32; repulsion: the greedy choices, or none where
    nothing was chosen; scores: [K] float32, R(v) of the tokens of stage 1; hidden: [S', D], the rows that enter layer L.
    """

    visual_features: Tensor | None = None
    visual_embeds: Tensor | None = None
    saliency: Tensor | None = None
    repulsion: Repulsion | None = None
    scores: Tensor | None = None
    hidden: Tensor | None = None


@dataclass
class ReferenceResult:
    """What was generated and what was kept.

    Attributes:
        token_ids: the new tokens, with the end token if one was reached.
        text: decoded without special tokens.
        finish_reason: ``stop`` (end token) or ``length``.
        kept_stage1: per image the tokens kept before the LLM, ascending.
        kept_stage2: positions in the original token grid of those kept inside the LLM, ascending.
        logits: [steps, vocab] float32; row i chose token i.
        prompt_tokens: length of the prompt in the lower layers, text and K visual tokens.
        upper_prompt_tokens: its length in the upper layers, text and K' visual tokens.
        trace: intermediate tensors of the prefill.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    kept_stage1: list[list[int]]
    kept_stage2: list[int]
    logits: Tensor
    prompt_tokens: int
    upper_prompt_tokens: int
    trace: Trace = field(repr=False)


@torch.no_grad()
def generate(
    model: ReferenceModel,
    prompt_text: str | Prompt,
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
    """Generate greedily.

    Args:
        model: the loaded checkpoint.
        prompt_text: what the user says, or a :class:`Prompt` from :meth:`ReferenceModel.split`.
        images: none or one (part of the prompt already if that is a :class:`Prompt`).
        config: pruning; none runs the model unpruned.
        max_new_tokens: at least 1.
        use_cache: keep keys and values; otherwise every step runs the whole text again with the prefill's kept sets.
        chat: apply the chat template to ``prompt_text``.
        ignore_eos: go on after an end token.
        kept_stage1: use these tokens instead of stage 1's choice (one list with an image, none without).
        kept_stage2: use these of the kept tokens (positions in the original grid) instead of stage 2's choice.
        forced_tokens: append exactly these instead of the most probable ones; logits are still the model's.

    Raises:
        PromptError: see :meth:`ReferenceModel.prepare`.
        RequestError: the configuration is for another model, or a given kept set is impossible.
    """
    if config is not None and (config.num_layers, config.num_visual_tokens) != (model.num_layers, model.num_visual_tokens):
        raise RequestError(
            f"the pruning configuration is for {config.num_visual_tokens} visual tokens and {config.num_layers} layers, the "
            f"checkpoint has {model.num_visual_tokens} and {model.num_layers}: make a new configuration"
        )
    steps = max_new_tokens if forced_tokens is None else min(max_new_tokens, len(forced_tokens))
    if steps < 1:
        raise RequestError("nothing to generate: max_new_tokens must be at least 1, and forced_tokens not empty")
    if isinstance(prompt_text, Prompt) and images:
        raise PromptError("a prepared prompt already holds its image: give the image to ReferenceModel.split")
    prompt = prompt_text if isinstance(prompt_text, Prompt) else model.prepare(prompt_text, images, chat=chat)
    trace = Trace()
    stage1 = _stage1(model, prompt, config, kept_stage1, trace)
    run = _PrunedDecoder(model, config, use_cache)
    first = len(prompt.before)
    rows = [model.embed(prompt.before)] + ([] if trace.visual_embeds is None else [trace.visual_embeds])
    embeds = torch.cat([*rows, model.embed(prompt.after)])

    logits = [run.prefill(embeds, first, stage1, kept_stage2, trace)]
    tokens: list[int] = []
    finish_reason = "length"
    while True:
        tokens.append(int(logits[-1].argmax()) if forced_tokens is None else forced_tokens[len(tokens)])
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
        kept_stage1=[] if prompt.pixel_values is None else [stage1],
        kept_stage2=run.kept_stage2,
        logits=torch.stack(logits),
        prompt_tokens=len(embeds),
        upper_prompt_tokens=run.upper_prompt_tokens,
        trace=trace,
    )


def _stage1(
    model: ReferenceModel,
    prompt: Prompt,
    config: PruningConfig | None,
    given: Sequence[Sequence[int]] | None,
    trace: Trace,
) -> list[int]:
    """Kept tokens of the image, ascending (empty without one); fills the visual part of the trace."""
    count = 0 if prompt.pixel_values is None else model.num_visual_tokens
    if given is not None and len(given) != (1 if count else 0):
        raise RequestError(f"{len(given)} kept sets for stage 1, but the prompt has {1 if count else 0} images")
    if prompt.pixel_values is None:
        return []
    features, saliency = model.vision(prompt.pixel_values)
    if given is not None:
        kept = _check_kept(given[0], range(count), "stage 1")
    elif config is None or config.keep_stage1 >= count:
        kept = list(range(count))
    else:
        trace.repulsion = repulsion_trace(
            features, config.keep_stage1, anchor=config.anchor, saliency=saliency, epsilon=config.epsilon
        )
        kept = sorted(trace.repulsion.order.tolist())
    trace.visual_features, trace.saliency = features, saliency
    trace.visual_embeds = model.project(features[kept])
    return kept


def _check_kept(kept: Sequence[int], candidates: Sequence[int], stage: str) -> list[int]:
    indices = sorted(int(index) for index in kept)
    if not indices or len(set(indices)) != len(indices) or not set(indices) <= set(candidates):
        raise RequestError(f"the kept set given for {stage} is empty, repeats a token or has one that does not exist there")
    return indices


class _PrunedDecoder:
    """The decoder in two parts with one state: which rows survived, where positions continue, keys and values.

    ``rows`` are the lower positions of the prompt rows that stage 2 leaves; lower positions are always 0, 1, 2, ...
    """

    def __init__(self, model: ReferenceModel, config: PruningConfig | None, use_cache: bool) -> None:
        self.model = model
        self.config = config
        self.prune_layer = model.num_layers if config is None else config.prune_layer
        self.cache: Any = DynamicCache() if use_cache else None  # without a model config: plain, one length per layer
        self.embeds = torch.empty(0)  # lower inputs so far, [S, D]
        self.rows: list[int] = []
        self.kept_stage2: list[int] = []
        self.upper_prompt_tokens = 0

    def prefill(self, embeds: Tensor, first: int, stage1: list[int], given: Sequence[int] | None, trace: Trace) -> Tensor:
        """Run the prompt and decide stage 2.

        Args:
            embeds: [S, D], the visual rows are ``first .. first + len(stage1)``.
            first: lower position of the first visual row.
            stage1: kept tokens of stage 1, as positions in the original grid.
            given: stage 2's result if it is not to be chosen.
            trace: gets the scores and the rows that enter the upper part.

        Returns:
            [vocab] float32 logits of the last position.
        """
        self.embeds = embeds
        positions = torch.arange(len(embeds))
        before = self._layers(range(self.prune_layer - 1), embeds[None], positions)
        hidden = self._layers(range(self.prune_layer - 1, self.prune_layer), before, positions)

        chosen = list(range(len(stage1)))
        if self.config is not None and stage1:
            if self.config.score_layer == "own":
                trace.scores = self._scores(self.prune_layer - 1, before, first, len(stage1))
            else:
                trace.scores = self._scores(self.prune_layer, hidden, first, len(stage1))
            if given is not None:
                chosen = [stage1.index(token) for token in _check_kept(given, stage1, "stage 2")]
            else:
                chosen = top_positions(trace.scores, self.config.keep_stage2).tolist()
        elif given:
            raise RequestError("a kept set was given for stage 2, but nothing is pruned inside the LLM")
        self.kept_stage2 = [stage1[index] for index in chosen]
        self.rows = [*range(first), *(first + index for index in chosen), *range(first + len(stage1), len(embeds))]
        self.upper_prompt_tokens = len(self.rows)
        trace.hidden = hidden[0, self.rows]
        return self._upper(hidden[:, self.rows], self.rows)

    def decode(self, embed: Tensor) -> Tensor:
        """Append one token: [1, D] -> [vocab] float32 logits."""
        self.embeds = torch.cat([self.embeds, embed])
        self.rows.append(len(self.embeds) - 1)
        if self.cache is not None:
            hidden = self._layers(range(self.prune_layer), embed[None], torch.tensor(self.rows[-1:]))
            return self._upper(hidden, self.rows[-1:])
        hidden = self._layers(range(self.prune_layer), self.embeds[None], torch.arange(len(self.embeds)))
        return self._upper(hidden[:, self.rows], self.rows)

    def _upper(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """Layers L..T-1 on the last ``len(rows)`` of all surviving rows, and the head: [1, s, D] -> [vocab]."""
        if self.config is not None and self.config.positions == "keep":
            positions = torch.tensor(rows)
        else:
            positions = torch.arange(len(self.rows) - len(rows), len(self.rows))
        return self.model.head(self._layers(range(self.prune_layer, self.model.num_layers), hidden, positions))

    def _layers(self, indices: range, hidden: Tensor, positions: Tensor) -> Tensor:
        """Decoder layers on new rows, which see the cached rows and each other causally: [1, s, D], [s] -> [1, s, D]."""
        if not len(indices):
            return hidden
        decoder = self.model.decoder
        new = hidden.shape[1]
        past = 0 if self.cache is None else self.cache.get_seq_length(indices[0])
        future = torch.arange(past + new)[None, :] > torch.arange(past, past + new)[:, None]  # by order, not by position
        mask = torch.zeros(1, 1, new, past + new, dtype=hidden.dtype).masked_fill(future, torch.finfo(hidden.dtype).min)
        rotary = decoder.rotary_emb(hidden, position_ids=positions[None])
        for index in indices:
            hidden = decoder.layers[index](hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=self.cache)
        return hidden

    def _scores(self, index: int, hidden: Tensor, first: int, count: int) -> Tensor:
        """R(v) from layer ``index``'s norm, q and k projections on its input [1, S, D] at lower positions: [K] float32."""
        layer = self.model.decoder.layers[index]
        attention = layer.self_attn
        length = hidden.shape[1]
        normed = layer.input_layernorm(hidden)
        query = attention.q_proj(normed).view(1, length, -1, attention.head_dim).transpose(1, 2)
        key = attention.k_proj(normed).view(1, length, -1, attention.head_dim).transpose(1, 2)
        cos, sin = self.model.decoder.rotary_emb(hidden, position_ids=torch.arange(length)[None])
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        visual = torch.zeros(length, dtype=torch.bool)
        visual[first : first + count] = True
        return last_token_scores(query[0], key[0], visual, scale=attention.scaling)
