"""The MLP of a trained selector against torch's own layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.model import build_model
from sts_export.graphs.stage1.keep_probability import KeepProbability
from tests.graphs.onnx_models import bind, random_weights, session

torch.set_num_threads(1)


def test_probability_of_the_second_output() -> None:
    """Also where the exact GELU and its approximation by tanh differ most."""
    x = TensorSpec("x", ("crops", "rows", 6), "float32")
    contract = GraphContract("mlp", (x,), (TensorSpec("p", ("crops", "rows"), "float32"),))
    module = KeepProbability(6, name="selector")
    model = build_model(contract, lambda op, x: [module(op, x)])
    weights = random_weights(model)
    assert set(weights) == {f"selector.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")}
    bind(model, weights)
    rows = (4 * np.random.default_rng(0).standard_normal((2, 50, 6))).astype(np.float32)
    w = {name.removeprefix("selector."): torch.from_numpy(values) for name, values in weights.items()}
    hidden = torch.nn.functional.linear(torch.from_numpy(rows), w["linear_1.weight"], w["linear_1.bias"])
    both = torch.nn.functional.linear(torch.nn.functional.gelu(hidden), w["linear_2.weight"], w["linear_2.bias"])
    (found,) = session(ir.Model(model.graph, ir_version=model.ir_version)).run(None, {"x": rows})
    np.testing.assert_allclose(found, both.softmax(-1)[..., 1].numpy(), rtol=0, atol=2e-6)
