"""Rotary tables against exact arithmetic and against transformers' own modules.

Processors round the last bit of float32 ``pow``, ``cos`` and ``sin`` differently, so transformers' tables are not the same
everywhere.  A difference of one unit in the last place of a frequency is multiplied by the position: that is the bound here.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionRotaryEmbedding

from sts_export.graphs.rotary import inverse_frequencies, rotary_tables

ULP = 2.0**-23  # of numbers from 1 to 2; relative to any float32 at most
FREQUENCY_BOUND = 4 * ULP  # a power within one unit and a reciprocal within half of one, on either side


def table_bound(inverse: NDArray[np.float32], positions: int) -> NDArray[np.float64]:
    """[positions, width / 2]: of the frequency, its product with the position, and the cosine of that."""
    angles = np.arange(positions)[:, None] * inverse.astype(np.float64)[None]
    return angles * (FREQUENCY_BOUND + ULP) + 2 * ULP


@given(
    half=st.integers(1, 128), theta=st.sampled_from([10.0, 500.0, 1e4, 5e5, 1e6, 5e7]), factor=st.sampled_from([1.0, 3.0, 8.0])
)
def test_frequencies_are_correctly_rounded_powers(half: int, theta: float, factor: float) -> None:
    found = inverse_frequencies(2 * half, theta, factor)
    assert found.dtype == np.float32 and found.shape == (half,)
    with localcontext() as context:
        context.prec = 40
        for index, value in enumerate(found):
            exponent = Decimal(float(np.float32(2 * index) / np.float32(2 * half)))
            exact = 1 / (Decimal(theta) ** exponent) / Decimal(factor)
            # power, reciprocal and division are rounded once each, by half a unit
            assert abs(Decimal(float(value)) - exact) <= exact * Decimal(1.51 * ULP)


@pytest.mark.parametrize("positions", [1, 4096, 32768])
def test_tables_are_correctly_rounded(positions: int) -> None:
    inverse = inverse_frequencies(64, 1e4)
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse[None]
    for table, function in zip(rotary_tables(inverse, positions), (np.cos, np.sin), strict=True):
        assert table.dtype == np.float32 and table.shape == (positions, 32)
        exact = function(angles.astype(np.longdouble))
        np.testing.assert_allclose(table, exact.astype(np.float64), rtol=0.51 * ULP, atol=1e-15)


@pytest.mark.parametrize(
    ("head_dim", "theta", "factor"), [(16, 10000.0, 1.0), (128, 10000.0, 1.0), (12, 500.0, 1.0), (64, 1e6, 1.0), (32, 1e4, 4.0)]
)
def test_decoder_tables_are_transformers_own(head_dim: int, theta: float, factor: float) -> None:
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if factor != 1:
        parameters.update(rope_type="linear", factor=factor)
    text = LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim, rope_parameters=parameters, num_hidden_layers=1
    )
    rotary = LlamaRotaryEmbedding(text)
    inverse = inverse_frequencies(head_dim, theta, factor)
    np.testing.assert_allclose(inverse, rotary.inv_freq.numpy(), rtol=FREQUENCY_BOUND, atol=0)
    bound = table_bound(inverse, 4096)
    theirs = rotary(torch.zeros(1, dtype=torch.float32), torch.arange(4096)[None])
    for table, expected in zip(rotary_tables(inverse, 4096), theirs, strict=True):
        halves = expected[0].numpy().reshape(4096, 2, head_dim // 2)
        np.testing.assert_array_equal(halves[:, 0], halves[:, 1])  # halves, not interleaved
        assert (np.abs(table - halves[:, 0]) <= bound).all()


@pytest.mark.parametrize("head_dim", [16, 80])
def test_tower_tables_are_transformers_own(head_dim: int) -> None:
    rotary = Qwen2_5_VLVisionRotaryEmbedding(Qwen2_5_VLVisionConfig(hidden_size=2 * head_dim, num_heads=2))
    coordinates = torch.arange(256)
    theirs = rotary(torch.zeros(1), torch.stack([coordinates, coordinates.flip(0)], dim=1))
    inverse = inverse_frequencies(head_dim // 2, 10000.0)
    bound = table_bound(inverse, 256)
    both_bounds = np.tile(np.maximum(bound, bound[::-1]), 4)
    for table, expected in zip(rotary_tables(inverse, 256), theirs, strict=True):
        both = np.concatenate([table, table[::-1]], axis=1)  # the row's, then the column's
        assert (np.abs(np.tile(both, 2) - expected.numpy()) <= both_bounds).all()
