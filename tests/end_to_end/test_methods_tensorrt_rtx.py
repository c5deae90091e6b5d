"""TensorRT for RTX builds the graphs of every method, float16, for a family of fixed pictures and one of any size.

The last part of the decoder is left out: no method changes it.  Heads of these checkpoints are so small that attention may be
built from primitive operators, as the product allows where there is no fused kernel.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sts_export.exporting.exporter import ExportRequest, export
from sts_export.pruning.methods import METHODS
from sts_export.tensorrt.profiles import profiles
from sts_export.testing.checkpoints import RandomLlava, RandomQwen25VL, write_random_llava, write_random_qwen2_5_vl
from sts_export.testing.checkpoints.selectors import write_random_selector

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
from tests.support.tensorrt_rtx import build, parse

FAMILIES = ("llava", "qwen2_5_vl")
GRAPHS = ("vision_encoder", "selector", "llm_lower")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("methods-rtx")
    return {
        "llava": write_random_llava(folder / "llava", RandomLlava(seed=43, kv_heads=2)),
        "qwen2_5_vl": write_random_qwen2_5_vl(folder / "qwen", RandomQwen25VL(seed=44, max_pixels=60 * 784)),
    }


@pytest.mark.parametrize("method", [method.name for method in METHODS])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_graphs_of_every_method_build(checkpoints: dict[str, Path], tmp_path: Path, family: str, method: str) -> None:
    selector = None
    if method == "learnpruner":
        width = {"llava": 32, "qwen2_5_vl": 64}[family]
        selector = str(write_random_selector(tmp_path / "selector.safetensors", width))
    budget = {"none": "100%", "fastv": "70%", "dart": "70%"}.get(method, "30%")
    request = ExportRequest(
        str(checkpoints[family]),
        output=tmp_path / "bundle",
        method=method,
        budget=budget,
        dtype="float16",
        selector_weights=selector,
    )
    bundle = export(request)
    for name in GRAPHS:
        assert len(build(parse(bundle.graph_file(name), decomposable=True), profiles(bundle.manifest, name, 1))) > 0
