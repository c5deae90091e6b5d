"""Lowered graphs in TensorRT for RTX, which parses and builds without a GPU: the nearest to an older TensorRT there is."""

from __future__ import annotations

from typing import Any

import pytest

from sts_export.bundle.manifest import Bundle
from sts_export.lowering.tensorrt import lower
from tests.support.lowered_graphs import FAMILIES, OLD, bundle_of, read

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")

from tests.support.bundles import GRAPHS
from tests.support.tensorrt_rtx import build, describe, parse, profiles  # needs tensorrt_rtx

BUNDLES = [("llava", "bfloat16"), *((name, dtype) for name in FAMILIES for dtype in ("float32", "float16"))]


@pytest.fixture(scope="module", params=BUNDLES, ids="-".join)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    name, dtype = request.param
    return bundle_of(name, dtype, tmp_path_factory)


@pytest.mark.parametrize("name", GRAPHS)
def test_parses_and_builds(bundle: Bundle, name: str) -> None:
    manifest = bundle.manifest
    contract = manifest.graphs[name]
    file = bundle.folder / f"{name}.lowered.onnx"  # beside the weights
    file.write_bytes(lower(read(bundle, name), OLD, plugins=False).graph)
    parsed = parse(file)
    file.unlink()

    assert tuple(map(describe, parsed.inputs)) == contract.inputs
    assert [tensor.name for tensor in parsed.outputs] == [spec.name for spec in contract.outputs]
    assert [describe(tensor).dtype for tensor in parsed.outputs] == [spec.dtype for spec in contract.outputs]
    for tensor, spec in zip(parsed.outputs, contract.outputs, strict=True):
        assert all(
            found in (-1, size) or isinstance(size, str) for found, size in zip(tuple(tensor.shape), spec.shape, strict=True)
        )
    kinds = parsed.count()
    fused = ("ATTENTION_INPUT", "ATTENTION_OUTPUT", "KV_CACHE_UPDATE", "ROTARY_EMBEDDING")
    assert not any(kinds[kind] for kind in fused)
    assert not any(kind.startswith("PLUGIN") for kind in kinds)
    assert kinds["TRIP_LIMIT"] == (name == "selector")  # one loop: no running sum became another
    assert _reach(parsed, contract.caches)
    assert len(build(parsed, profiles(manifest, name))) > 1000


def _reach(parsed: Any, caches: tuple[tuple[str, str], ...]) -> bool:
    """Every input decides something, and a cache output depends on its input and on where rows are written."""
    reached = {tensor.name: parsed.reachable_outputs(tensor.name) for tensor in parsed.inputs}
    return all(reached.values()) and all(
        after in reached[before] and after in reached["write_index"] for before, after in caches
    )
