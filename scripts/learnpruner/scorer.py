"""The network that is trained: features of the vision tower -> how likely each token is to be kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

PREFIX = "selector."


class Scorer(nn.Module):
    """linear_2(gelu(linear_1(x))), all in float32, as stage 1 ``learned`` computes it.

    While it is trained, features are standardized by ``mean`` and ``spread`` [C], which are constants; :func:`weights` puts
    both into the first layer.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear_1 = nn.Linear(width, width // 2)
            self.linear_2 = nn.Linear(width // 2, 2)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """[N, C] -> logits [N, 2]; the second is to keep."""
        standard = (features.float() - self.mean) / self.spread
        logits: Tensor = self.linear_2(nn.functional.gelu(self.linear_1(standard)))
        return logits

    @torch.no_grad()
    def standardize(self, samples: Iterable[Tensor]) -> None:
        """Take mean and standard deviation of all tokens of some pictures, [N, C] each."""
        rows = torch.cat([sample.double() for sample in samples])
        self.mean.copy_(rows.mean(0))
        self.spread.copy_(rows.std(0, unbiased=False).clamp(min=1e-6))


def keep_mask(logits: Tensor) -> Tensor:
    """[N, 2] -> [N] float32: 1 where keeping is the more likely; its gradient is that of the probability of keeping."""
    probability = logits.softmax(-1)[:, 1]
    hard = (logits[:, 1] > logits[:, 0]).float()
    return hard + probability - probability.detach()


@torch.no_grad()
def weights(scorer: Scorer) -> dict[str, Tensor]:
    """What ``--selector-weights`` reads, for features as the tower gives them."""
    first = scorer.linear_1.weight.double() / scorer.spread.double()
    bias = scorer.linear_1.bias.double() - first @ scorer.mean.double()
    tensors = {
        "linear_1.weight": first,
        "linear_1.bias": bias,
        "linear_2.weight": scorer.linear_2.weight,
        "linear_2.bias": scorer.linear_2.bias,
    }
    return {PREFIX + name: tensor.float().contiguous().cpu() for name, tensor in tensors.items()}
