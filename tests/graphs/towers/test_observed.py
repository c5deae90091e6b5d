"""Layers that are looked at, and steps and memory of received attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.observed import OBSERVED, Depths, observed_bytes, query_steps
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig

CLIP_L = ClipVisionConfig(336, 14, 1024, 4096, 16, 23, 1e-5, "quick_gelu")
QWEN = QwenVisionConfig(14, 2, 2, 8, 1280, 3420, 16, 32, (7, 15, 23, 31), 3584, "silu", 1432)


def test_layers_of_public_models() -> None:
    assert CLIP_L.depths == Depths(feature=23, early=6, middle=9)
    assert QWEN.depths == Depths(feature=32, early=8, middle=16)


@pytest.mark.parametrize(
    ("layers", "early", "middle"), [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 2), (6, 2, 2), (10, 3, 4), (12, 3, 5), (26, 7, 10)]
)
def test_halves_round_up(layers: int, early: int, middle: int) -> None:
    """A quarter of 2, 6, 10 and 26 and three eighths of 4 and 12 end in a half."""
    assert replace(CLIP_L, feature_layers=layers).depths == Depths(layers, early, middle)


def test_a_layer_is_asked_once_for_each_thing() -> None:
    sights = Depths(feature=3, early=1, middle=1).sights(OBSERVED.keys())
    assert sights == {
        1: {"cls_attention", "received_attention"},
        3: {"cls_attention", "received_attention", "mean_keys"},
    }
    assert Depths(3, 1, 2).sights({"early_cls_attention", "projected"}) == {1: {"cls_attention"}}
    assert Depths(3, 1, 2).sights(frozenset()) == {}


@settings(derandomize=True, deadline=None, database=None)
@given(crops=st.integers(1, 50), heads=st.integers(1, 32), rows=st.integers(1, 1 << 16))
def test_steps_take_all_rows_in_64_mib(crops: int, heads: int, rows: int) -> None:
    steps = query_steps(crops, heads, rows)
    assert steps.at_once * steps.count >= rows > 0
    held = 2 * crops * heads * steps.at_once * rows * 4
    assert steps.at_once == 1 or held <= 64 << 20
    # No more steps than that takes.
    fewer = -(-rows // max(1, steps.count - 1))
    assert steps.count == 1 or 2 * crops * heads * fewer * rows * 4 > 64 << 20


def test_memory() -> None:
    """Of the largest Qwen picture of 16384 patches; by hand."""
    shape = (1, 16, 16384, 80)
    turned = 2 * 16384 * 1280 * 4
    assert observed_bytes(frozenset(), *shape) == observed_bytes({"cls_features", "projected"}, *shape) == 0
    assert observed_bytes({"mean_keys"}, *shape) == observed_bytes({"early_cls_attention"}, *shape) == turned
    assert observed_bytes({"received_attention"}, *shape) == turned + (64 << 20)
    # CLIP-L's scores of one crop need less.
    assert observed_bytes({"middle_received_attention"}, 1, 16, 577, 64) == 2 * 577 * 1024 * 4 + 2 * 16 * 577**2 * 4
