"""How much a bundle holds: rows of the KV caches, and the bytes that they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sts_export.dtypes import ELEMENT_TYPES
from sts_export.families.spec import ModelSpec

if TYPE_CHECKING:
    from sts_export.pruning.config import PruningConfig


@dataclass(frozen=True)
class Capacities:
    """Rows of the static KV caches (docs/architecture.md, "KV caches").

    Args:
        prompt_tokens, new_tokens: text.
        visual_tokens: unpruned visual tokens of a prompt, all images.
        newline_rows: learned newlines of those images.
        rows: of the caches of each decoder part: prompt_tokens + what of visual_tokens is left in it + newline_rows +
            new_tokens.
        positions: the largest rotary position plus one.
    """

    prompt_tokens: int
    new_tokens: int
    visual_tokens: int
    newline_rows: int
    rows: tuple[int, ...]
    positions: int

    @classmethod
    def plan(
        cls, spec: ModelSpec, pruning: PruningConfig, *, prompt_tokens: int, new_tokens: int, visual_tokens: int
    ) -> Capacities:
        """Room for that much text and for images of ``visual_tokens`` tokens in all, at least one of the largest."""
        largest = spec.max_image_tokens
        visual = max(largest, visual_tokens)
        images, rest = divmod(visual, largest)
        newlines = spec.max_image_newlines * (images + (rest > 0))
        text = prompt_tokens + newlines + new_tokens
        of_largest = pruning.keeps(largest)
        of_rest = pruning.keeps(rest) if rest else (0,) * len(of_largest)
        rows = tuple(text + images * keep + last for keep, last in zip(of_largest, of_rest, strict=True))
        positions = text + visual if spec.unpruned_positions(pruning) else rows[0]
        return cls(prompt_tokens, new_tokens, visual, newlines, rows, positions)


def kv_bytes(model: ModelSpec, layers: int, rows: int, dtype: str) -> int:
    """Bytes of ``layers`` layers of keys and values with ``rows`` rows (docs/method.md, "Numbers to meet")."""
    return layers * 2 * model.decoder.num_kv_heads * model.decoder.head_dim * rows * ELEMENT_TYPES[dtype].itemsize


def cache_bytes(model: ModelSpec, pruning: PruningConfig, capacities: Capacities, dtype: str) -> tuple[int, ...]:
    """Bytes of one request's caches in each decoder part."""
    return tuple(
        kv_bytes(model, len(part.layers), rows, dtype) for part, rows in zip(pruning.parts, capacities.rows, strict=True)
    )
