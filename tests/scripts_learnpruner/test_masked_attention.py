"""Outputs and gradients against plain attention, and against what showing or hiding one key really changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scripts.learnpruner.masked_attention import Mask, masked_attention

HEADS, ROWS, WIDTH, SCALE = 3, 9, 4, 0.7
KEEP = torch.tensor([1.0, 0, 1, 0, 1, 1, 0, 1, 1])
REACHING = KEEP > 0.5  # rows that others see


@pytest.fixture
def tensors() -> list[Tensor]:
    """query [1, H, S, d], key and value [1, 1, S, d], and the gradient of the output [1, S, H, d], 0 at hidden rows."""
    generator = torch.Generator().manual_seed(3)
    query, key, value, gradient = (
        torch.randn(shape, generator=generator, dtype=torch.float64).float()
        for shape in ((1, HEADS, ROWS, WIDTH), (1, 1, ROWS, WIDTH), (1, 1, ROWS, WIDTH), (1, ROWS, HEADS, WIDTH))
    )
    return [query, key, value, gradient * REACHING[:, None, None]]


def allowed() -> Tensor:
    """Causal, and the last two rows are segments of their own."""
    seen = torch.ones(ROWS, ROWS, dtype=torch.bool).tril()
    seen[8, 7] = False
    return seen


def ours(query: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
    mask = Mask(keep, allowed())
    return masked_attention(nn.Module(), query, key, value, mask.seen, SCALE, mask=mask)[0]


def plain(query: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
    """sum_j m_j exp(s_ij) v_j / sum_j m_j exp(s_ij) with m_ii = 1: [1, S, H, d]."""
    own = torch.eye(ROWS)
    weight = allowed() * (keep[None] * (1 - own) + own)
    powers = (query @ key.transpose(2, 3) * SCALE).exp() * weight
    return (powers / powers.sum(-1, keepdim=True) @ value).transpose(1, 2)


def test_output_and_usual_gradients(tensors: list[Tensor]) -> None:
    *inputs, gradient = tensors
    results: list[list[Tensor | None]] = []
    attends: tuple[Callable[..., Tensor], ...] = (ours, plain)
    for attend in attends:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = attend(*leaves, KEEP)
        out.backward(gradient)  # type: ignore[no-untyped-call]
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None and theirs is not None
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_gradient_of_the_mask(tensors: list[Tensor]) -> None:
    """Of a key that is seen the softmax's derivative; of a hidden one what showing it changes."""
    query, key, value, gradient = tensors
    keep = KEEP.clone().requires_grad_()
    ours(query, key, value, keep).backward(gradient)  # type: ignore[no-untyped-call]
    derivative = KEEP.clone().requires_grad_()
    plain(query, key, value, derivative).backward(gradient)  # type: ignore[no-untyped-call]
    assert keep.grad is not None and derivative.grad is not None
    torch.testing.assert_close(keep.grad[REACHING], derivative.grad[REACHING], atol=1e-5, rtol=1e-4)
    before = plain(query, key, value, KEEP)
    for hidden in (~REACHING).nonzero()[:, 0].tolist():
        shown = KEEP.clone()
        shown[hidden] = 1
        change = ((plain(query, key, value, shown) - before) * gradient).sum()
        torch.testing.assert_close(keep.grad[hidden], change, atol=1e-5, rtol=1e-4)
