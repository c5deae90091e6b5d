"""The decoder in two parts: layers 0..L-1 (lower) on what stage 1 leaves, L..T-1 (upper) on what stage 2 leaves of it.

Every layer is transformers' own; masks and positions are explicit.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sts_export.errors import RequestError
from sts_export.pruning.config import PruningConfig
from sts_export.reference.model import ReferenceModel
from sts_export.reference.pruning.registry import find_stage2
from sts_export.reference.pruning.stage import CLS, Kept, Prefill


@dataclass(frozen=True)
class LowerPrompt:
    """The prompt as it enters layer 0.

    Attributes:
        embeds: [S, D].
        positions: [axes, S] int64.
        next_position: of the first new token, on all axes.
        visual: [V] int64, the rows that are visual tokens, CLS tokens included, ascending; newlines are not among them.
        text: [S] bool, the rows that are text: neither visual nor newlines.
        tokens: [V] the token of each visual row, numbered through all images, or ``CLS``.
        whole: whether stage 1 dropped nothing.
    """

    embeds: Tensor
    positions: Tensor
    next_position: int
    visual: Tensor
    text: Tensor
    tokens: list[int]
    whole: bool


@dataclass(frozen=True)
class Stage2:
    """What stage 2 did.

    chosen: [K'] int64 into the V visual rows, ascending; scores: [V] float32, or none where nothing was scored; margin: as
    in Kept; rows: [S'] int64, the surviving rows of the lower prompt; positions: [axes, S'] in the upper layers; hidden:
    [S', D], input of layer L.
    """

    chosen: Tensor
    scores: Tensor | None
    margin: float
    rows: Tensor
    positions: Tensor
    hidden: Tensor


def _cache_argument(layer: torch.nn.Module) -> str:
    """transformers 5.24 renamed it, and 5.40 will drop the old name."""
    return "cache" if "cache" in inspect.signature(layer.forward).parameters else "past_key_values"


class PrunedDecoder:
    """Prefill and decode with one state: lower inputs so far, surviving rows, both parts' positions, keys and values."""

    def __init__(self, model: ReferenceModel, config: PruningConfig | None, use_cache: bool, seed: int = 0) -> None:
        self.model = model
        self.config = config
        self.seed = seed
        self.prune_layer = model.num_layers if config is None else config.prune_layer
        self.cache: Any = DynamicCache() if use_cache else None  # without a model config: plain, one length per layer
        self.embeds = torch.empty(0)  # [S, D]
        self.rows = torch.empty(0)  # [S'] into the lower rows
        self.lower = torch.empty(0)  # [axes, S]
        self.upper = torch.empty(0)  # [axes, S']
        self.next_lower = self.next_upper = 0

    def prefill(self, prompt: LowerPrompt, keep: int, given: Tensor | None) -> tuple[Tensor, Stage2]:
        """Run the prompt and decide stage 2.

        Args:
            prompt: what stage 1 left.
            keep: K' of all images together.
            given: the tokens of stage 2's result ``chosen`` if they are not to be decided; the rest of K' are CLS tokens.

        Returns:
            [vocab] float32 logits of the last position, and what was decided.
        """
        self.embeds, self.lower, self.next_lower = prompt.embeds, prompt.positions, prompt.next_position
        last_lower = self.prune_layer - 1
        before = self._layers(range(last_lower), prompt.embeds[None], self.lower)
        hidden = self._layers(range(last_lower, self.prune_layer), before, self.lower)

        kept = Kept(torch.arange(len(prompt.visual)))
        if self.config is not None and len(prompt.visual):
            stage = find_stage2(self.config.stage2.name)
            kept = stage(self._prefill_seen(prompt, before, hidden), keep, **asdict(self.config.stage2))
        chosen = kept.chosen if given is None else _with_cls(given, prompt.tokens, keep, kept.scores)
        alive = torch.ones(len(prompt.embeds), dtype=torch.bool)
        alive[prompt.visual] = False
        alive[prompt.visual[chosen]] = True
        self.rows = alive.nonzero()[:, 0]
        # A prompt of which nothing was dropped is the unpruned model's, with the unpruned model's positions.
        untouched = prompt.whole and bool(alive.all())
        if self.config is None or self.config.positions in ("keep", "original") or untouched:
            self.upper, self.next_upper = self.lower[:, self.rows], self.next_lower
        else:
            self.upper, self.next_upper = torch.arange(len(self.rows)).expand(len(self.lower), -1), len(self.rows)
        logits = self._upper(hidden[:, self.rows], self.upper)
        return logits, Stage2(chosen, kept.scores, kept.margin, self.rows, self.upper, hidden[0, self.rows])

    def decode(self, embed: Tensor) -> Tensor:
        """Append one token: [1, D] -> [vocab] float32 logits."""
        self.rows = torch.cat([self.rows, torch.tensor([len(self.embeds)])])
        self.embeds = torch.cat([self.embeds, embed])
        axes = len(self.lower)
        self.lower = torch.cat([self.lower, torch.full((axes, 1), self.next_lower)], dim=1)
        self.upper = torch.cat([self.upper, torch.full((axes, 1), self.next_upper)], dim=1)
        self.next_lower, self.next_upper = self.next_lower + 1, self.next_upper + 1
        if self.cache is not None:
            hidden = self._layers(range(self.prune_layer), embed[None], self.lower[:, -1:])
            return self._upper(hidden, self.upper[:, -1:])
        hidden = self._layers(range(self.prune_layer), self.embeds[None], self.lower)
        return self._upper(hidden[:, self.rows], self.upper)

    def _upper(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Layers L..T-1 and the head: [1, s, D], [axes, s] -> [vocab]."""
        return self.model.head(self._layers(range(self.prune_layer, self.model.num_layers), hidden, positions))

    def _layers(self, indices: range, hidden: Tensor, positions: Tensor) -> Tensor:
        """Decoder layers on new rows, which see the cached rows and each other causally: [1, s, D] -> [1, s, D]."""
        if not len(indices):
            return hidden
        new = hidden.shape[1]
        past = 0 if self.cache is None else self.cache.get_seq_length(indices[0])
        window = self.model.sliding_window
        if window is not None and past + new > window:
            raise RequestError(f"{past + new} rows do not fit the sliding window of {window}: use a shorter prompt or answer")
        future = torch.arange(past + new)[None, :] > torch.arange(past, past + new)[:, None]  # by order, not by position
        mask = torch.zeros(1, 1, new, past + new, dtype=hidden.dtype).masked_fill(future, torch.finfo(hidden.dtype).min)
        rotary = self.model.rotary(hidden, positions)
        for index in indices:
            layer = self.model.decoder.layers[index]
            cached = {_cache_argument(layer): self.cache}
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, **cached)
        return hidden

    def _prefill_seen(self, prompt: LowerPrompt, before: Tensor, hidden: Tensor) -> Prefill:
        """What stage 2 may look at; before and hidden: [1, S, D], input and output of layer L-1."""
        mask = torch.zeros(hidden.shape[1], dtype=torch.bool)
        mask[prompt.visual] = True
        own, following = self.prune_layer - 1, self.prune_layer
        scale: float = self.model.decoder.layers[own].self_attn.scaling
        return Prefill(
            mask,
            lambda: self._query_key(own, before),
            lambda: self._query_key(following, hidden),
            scale,
            prompt.text,
            lambda: self.model.decoder.norm(hidden)[0],
            self.seed,
        )

    def _query_key(self, index: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Layer ``index``'s norm, q and k projections on its input [1, S, D] at lower positions: [H, S, D], [H_kv, S, D]."""
        layer = self.model.decoder.layers[index]
        attention = layer.self_attn
        length = hidden.shape[1]
        normed = layer.input_layernorm(hidden)
        query = attention.q_proj(normed).view(1, length, -1, attention.head_dim).transpose(1, 2)
        key = attention.k_proj(normed).view(1, length, -1, attention.head_dim).transpose(1, 2)
        query, key = self.model.rotate(query, key, self.model.rotary(hidden, self.lower))
        return query[0], key[0]


def _with_cls(given: Tensor, tokens: Sequence[int], keep: int, scores: Tensor | None) -> Tensor:
    """The visual rows given, and as many CLS tokens as ``keep`` leaves room for, those of the largest scores: ascending."""
    cls = torch.tensor([row for row, token in enumerate(tokens) if token == CLS], dtype=torch.int64)
    if scores is not None:
        cls = cls[scores[cls].sort(descending=True, stable=True).indices]
    return torch.cat([given, cls[: max(0, keep - len(given))]]).sort().values


def check_kept(kept: Sequence[int], candidates: Sequence[int], stage: str) -> list[int]:
    """A kept set from outside, ascending.

    Raises:
        RequestError: it is impossible.
    """
    indices = sorted(int(index) for index in kept)
    if not indices or len(set(indices)) != len(indices) or not set(indices) <= set(candidates):
        raise RequestError(f"the kept set given for {stage} is empty, repeats a token or has one that does not exist there")
    return indices
