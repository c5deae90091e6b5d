"""LearnPruner before the LLM: a small network says which tokens to keep, and the last tenth is the most different ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import gelu

from sts_export.errors import RequestError
from sts_export.reference.pruning.ranking import best, largest
from sts_export.reference.pruning.stage import Choices, Crop
from sts_export.reference.pruning.vectors import cosines


def stage1(crop: Crop, keep: int, /) -> Choices:
    """The 0.9 K largest probabilities, then the token whose largest cosine to the chosen ones is smallest, up to K.

    Raises:
        RequestError: the crop has no weights.
    """
    if not crop.weights:
        raise RequestError("stage 1 learned has no weights: give those of a selector")
    chosen, margins = largest(keep_probability(crop.features, crop.weights), max(1, 9 * keep // 10))
    similarity = cosines(crop.features, crop.features)
    closest = similarity[:, chosen].max(dim=1).values
    free = torch.ones(len(closest), dtype=torch.bool)
    free[chosen] = False
    order, clear = chosen.tolist(), margins.tolist()
    while len(order) < keep:
        token, margin = best(-closest, free)
        order.append(token)
        clear.append(margin)
        free[token] = False
        closest = torch.maximum(closest, similarity[:, token])
    return Choices(torch.tensor(order), torch.tensor(clear, dtype=torch.float64))


STAGE = stage1


def keep_probability(features: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """[N, C] -> [N] float32: softmax of the network's two outputs, of which the second one is to keep."""
    first, first_bias, second, second_bias = (
        weights[f"selector.{name}"].double()
        for name in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
    )
    hidden = gelu(features.double() @ first.T + first_bias)
    return (hidden @ second.T + second_bias).softmax(dim=1)[:, 1].float()
