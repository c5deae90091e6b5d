"""Stages inside the LLM in a graph of the decoder: TensorRT for RTX builds it, and older TensorRT gets a form that agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.decoder.part import decoder_part
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.graphs.model import parameters
from sts_export.lowering.tensorrt.graph import lowered
from sts_export.pruning.stage import Stage2
from sts_export.pruning.stage2.dart import Dart
from sts_export.pruning.stage2.random import Random
from sts_export.pruning.stage2.text_visual import TextVisual
from tests.graphs.onnx_models import bind, random_weights

STAGES = {"text-visual": TextVisual(), "text-visual-next": TextVisual("next"), "dart": Dart(), "random": Random()}
CAPACITY = 96


def lower_part(stage: Stage2, dtype: Dtype, mrope: tuple[int, ...] = ()) -> ir.Model:
    """One layer with grouped heads, and the stage behind it."""
    config = DecoderConfig(128, 128, 2, 4, 2, 64, 40, 1e-5, 10000.0, mrope_section=mrope)
    sizes: dict[str, Any] = {"prefix": "model", "head_name": "lm_head", "capacity": CAPACITY, "positions": CAPACITY}
    return decoder_part(config, decoder_parts(2, (1,))[0], dtype, stage2=stage.build, needs=stage.needs, **sizes)


@pytest.mark.parametrize("name", STAGES)
def test_weights_have_the_names_of_the_checkpoint(name: str) -> None:
    names = {parameter.name for parameter in parameters(lower_part(STAGES[name], "float32"))}
    assert all(each.startswith(("model.layers.", "model.embed_tokens.")) for each in names - {"model.norm.weight"})
    assert ("model.norm.weight" in names) == (name == "dart")


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["text-visual", "dart", "random"])
def test_builds(name: str, dtype: Dtype, most: int, tmp_path: Path) -> None:
    """A profile of prefill and one of decode, for up to ``most`` requests; attention stays fused, and no input is left out.

    Of one request all sizes of decode are fixed.
    """
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")
    from tests.support.tensorrt_rtx import build, parse

    model = lower_part(STAGES[name], dtype, (8, 12, 12) if dtype == "float16" else ())
    bind(model, random_weights(model))
    file = tmp_path / "lower.onnx"
    file.write_bytes(ir.to_proto(model).SerializeToString())
    parsed = parse(file, decomposable=dtype == "float32")
    assert parsed.count()["ATTENTION_INPUT"] == 1 and parsed.masked("write_index") == [True]
    for value in parsed.inputs:
        assert parsed.reachable_outputs(value.name), value.name
    assert name != "random" or {"kept_rows", "last_row"} <= parsed.reachable_outputs("seed")
    prefill = {
        "batch": (1, most, most),
        "sequence": (1, 60, 90),
        "visual": (1, 20, 40),
        "visual_keep": (1, 10, 40),
        "survivors": (1, 50, 90),
    }
    assert len(build(parsed, [prefill, {**dict.fromkeys(prefill, (1, 1, 1)), "batch": (1, most, most)}])) > 1000


def feeds(*, seed: bool) -> dict[str, Any]:
    """Two requests of 20 visual rows; the second is padded."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, (2, 30))
    ids[:, 3:23] = VISUAL_ROW
    mask = np.ones((2, 30), np.int64)
    mask[1, 27:] = 0
    caches = {f"{kind}_cache.0": np.zeros((2, 2, CAPACITY, 64), np.float32) for kind in ("key", "value")}
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "visual_embeds": rng.standard_normal((2, 20, 128)).astype(np.float32),
        "stage2_slots": np.zeros(9, np.int64),
        "position_ids": np.tile(np.arange(30), (2, 1)),
        "write_index": np.zeros(2, np.int64),
        **caches,
        **({"seed": np.array([1, 2**40])} if seed else {}),
    }


@pytest.mark.parametrize("name", STAGES)
def test_the_form_of_older_tensorrt_agrees(name: str) -> None:
    model = lower_part(STAGES[name], "float32")
    bind(model, random_weights(model))
    proto = ir.to_proto(model)
    given, outputs = feeds(seed=name == "random"), ["kept_rows", "last_row"]
    forms = [proto.SerializeToString(), lowered(proto, basic=True, plugins=False)]
    sessions = [ort.InferenceSession(form, providers=["CPUExecutionProvider"]) for form in forms]
    (kept, last), (other_kept, other_last) = (session.run(outputs, given) for session in sessions)
    assert kept.shape == (2, 19) and last.tolist() == [18, 15]
    assert np.array_equal(kept, other_kept) and np.array_equal(last, other_last)
