"""What ONNX Runtime gets of whole bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from sts_export import Pipeline
from sts_export.backends.onnxruntime import backend as onnxruntime_backend
from sts_export.bundle.manifest import open_bundle
from sts_export.lowering.onnxruntime_attention import CONTRIB
from sts_export.lowering.onnxruntime_graph import for_onnxruntime
from sts_export.testing.checkpoints import RandomLlava, random_image, write_random_llava
from tests.graphs.onnx_models import operators
from tests.support.bundles import GRAPHS
from tests.support.pipelines import export_to


def test_graphs_of_a_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches ONNX Runtime; files stay as they are."""
    seen: list[bytes] = []
    original = ort.InferenceSession

    def session(graph: bytes, *args: Any, **kwargs: Any) -> Any:
        seen.append(graph)
        return original(graph, *args, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", session)
    Pipeline(bundle, threads=1)
    for name, graph in zip(GRAPHS, seen, strict=True):
        found = {kind for kind in operators(graph) if "Attention" in kind}
        wanted = {"vision_encoder": {f"{CONTRIB}::MultiHeadAttention"}, "selector": set[str]()}
        assert found == wanted.get(name, {f"{CONTRIB}::GroupQueryAttention"})
        assert "Attention" not in found and (name != "selector" or graph == (bundle / "selector.onnx").read_bytes())
    open_bundle(bundle, check_all=True)


@pytest.mark.parametrize("heads", [(4, 2, 12), (2, 2, 20), (4, 4, 16)], ids=["12", "20", "16"])
def test_any_head_size_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int, int]) -> None:
    """GroupQueryAttention takes multiples of 8 only; a bundle's graphs take any even number."""
    count, kv_heads, head_dim = heads
    spec = RandomLlava(layers=2, vision_layers=2, heads=count, kv_heads=kv_heads, head_dim=head_dim)
    made = export_to(write_random_llava(tmp_path / "source", spec), tmp_path / "bundle", prune_layer=1)

    def answer(rewrite: Callable[..., bytes]) -> list[int]:
        monkeypatch.setattr(onnxruntime_backend, "for_onnxruntime", rewrite)
        return list(Pipeline(made, threads=1).generate("What is it?", random_image(1), max_new_tokens=6).token_ids)

    assert answer(for_onnxruntime) == answer(lambda graph, *_, **__: graph)
