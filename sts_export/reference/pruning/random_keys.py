"""Random keys that are the same everywhere: integers alone, a chain of permutations of the numbers below a prime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PRIME = 2**31 - 1
_STEP = 10368889


def random_key(seed: int, words: Iterable[int]) -> int:
    """A number below 2^24 that follows from the seed (any integer) and the words."""
    x = seed % (PRIME - 1) + 1
    for word in words:
        x = _permuted(x + word + 1)
    for _ in range(2):
        x = _permuted(x + _STEP)
    return x // 128


def random_keys(seed: int, head: Sequence[int], last: Iterable[int]) -> Tensor:
    """Keys of the words ``[*head, each of last]`` as float32, which holds them exactly."""
    return torch.tensor([random_key(seed, [*head, word]) for word in last], dtype=torch.float32)


def _permuted(x: int) -> int:
    """The fifth power, which no two numbers below the prime share: 5 has no factor in common with PRIME - 1."""
    return pow(x % PRIME, 5, PRIME)
