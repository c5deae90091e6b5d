"""Keeping every token, as a graph of its own: exports leave it out where nothing is dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from sts_export.graphs.contracts import TensorSpec
from sts_export.graphs.selector import selector
from sts_export.pruning.stage1.keep_all import KeepAll
from tests.graphs.onnx_models import serialized


def test_every_token_of_unequal_crops_is_kept() -> None:
    """Two crops of six rows, of which four and two are tokens; a crop's other rows are no tokens."""
    features = TensorSpec("visual_features", ("crops", "rows", 4), "float32")
    sizes: dict[str, Any] = {"hidden_size": 4, "width": 4, "max_crops": 2, "max_rows": 6}
    session = ort.InferenceSession(
        serialized(selector([features], None, "float32", prefix="p", stage1=KeepAll().build, **sizes)),
        providers=["CPUExecutionProvider"],
    )
    order = np.array([5, 0, 8, 3, 2, 11])
    quota = np.array([[True] * 4, [True] * 2 + [False] * 2])
    rows = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    feeds = {"visual_features": rows, "token_order": order, "quota": quota}
    kept, embeds = session.run(None, feeds)
    assert kept[:6].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(embeds[:6], rows.reshape(12, 4)[order])
