"""What stage 2 sees, made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from sts_export.reference import Prefill


def prefill_of(kinds: str, key: Tensor, query: Tensor | None = None, final: Tensor | None = None, seed: int = 0) -> Prefill:
    """Rows by letter: ``v`` visual, ``n`` newline, ``t`` text; key [H_kv, S, D]; the next layer's query is minus the own."""
    letters = torch.tensor([ord(letter) for letter in kinds])
    own = key if query is None else query
    rows = torch.zeros(len(kinds), 2) if final is None else final
    return Prefill(letters == ord("v"), lambda: (own, key), lambda: (-own, key), 0.5, letters == ord("t"), lambda: rows, seed)
