"""Muon for the matrices inside layers, AdamW for everything else, with one schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Peak rates over `steps` steps: warm-up, then a cosine down to a fiftieth.

    matrices: of Muon (scaled as AdamW's rate is); attention: of Muon for query and key matrices, which otherwise grow until
    all attention falls on few places; others: of AdamW for embeddings, biases, norms and the head.
    """

    steps: int
    matrices: float
    attention: float
    others: float
    warmup: int = 50
    weight_decay: float = 0.05

    def share(self, step: int) -> float:
        down = 0.51 + 0.49 * math.cos(math.pi * min(1.0, step / self.steps))
        return min(1.0, (step + 1) / self.warmup) * down


class Optimizer:
    """Both optimizers as one; its state is a plain dictionary of tensors."""

    def __init__(self, layers: Iterable[nn.Module], rest: Iterable[nn.Module], schedule: Schedule) -> None:
        self.schedule = schedule
        inside = [(name, p) for layer in layers for name, p in layer.named_parameters()]
        matrices = [(name, p) for name, p in inside if p.ndim == 2]
        attention = [p for name, p in matrices if "q_proj" in name or "k_proj" in name]
        others = [p for name, p in matrices if "q_proj" not in name and "k_proj" not in name]
        vectors = [p for _, p in inside if p.ndim != 2] + [p for module in rest for p in module.parameters()]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (self._muon(some), peak) for some, peak in ((others, schedule.matrices), (attention, schedule.attention)) if some
        ]
        adam = torch.optim.AdamW(vectors, lr=schedule.others, betas=(0.9, 0.98), weight_decay=0.0)
        self.parts.append((adam, schedule.others))
        self.parameters: list[Tensor] = [*others, *attention, *vectors]

    def _muon(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        decay = self.schedule.weight_decay
        return torch.optim.Muon(parameters, lr=1.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw")

    def step(self, step: int) -> None:
        """Clip, update and forget the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, peak in self.parts:
            for group in part.param_groups:
                group["lr"] = peak * self.schedule.share(step)
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part, _ in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for (part, _), state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
