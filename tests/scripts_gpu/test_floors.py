"""Bytes of a decode step, counted by hand from the published dimensions."""

from __future__ import annotations

import pytest

from scripts.gpu.end_to_end.floors import allocated_cache_bytes, decode_bytes, decode_report, weight_bytes
from scripts.gpu.end_to_end.flops import layer_multiply_adds, prefill_flops
from sts_export.bundle.manifest import Bundle
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.public_models import write_sparse_checkpoint

WIDTH, MLP, LAYERS, VOCABULARY = 4096, 11008, 32, 32064
KV_ROW = 2 * WIDTH * 2  # bytes of a row in one layer, float16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """LLaVA-1.5-7B at budget 64: 96 tokens in 16 layers, 32 in the others."""
    folder = tmp_path_factory.mktemp("floors")
    checkpoint = write_sparse_checkpoint(folder / "checkpoint", "llava-hf/llava-1.5-7b-hf")
    return export(ExportRequest(str(checkpoint), output=folder / "bundle", budget="64", weights="link"))


def test_weights_of_both_halves(bundle: Bundle) -> None:
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * MLP + 2 * WIDTH
    assert weight_bytes(bundle, "llm_lower", "llm_upper") == 2 * (LAYERS * layer + WIDTH + VOCABULARY * WIDTH)


def test_decode_step(bundle: Bundle) -> None:
    """40 rows of text; half of 32 new tokens are there."""
    nbytes = decode_bytes(bundle.manifest, 1000, {"lower": 40 + 96, "upper": 40 + 32}, 32)
    assert nbytes == 1000 + KV_ROW * (16 * (40 + 96 + 16) + 16 * (40 + 32 + 16))


def test_allocated_caches(bundle: Bundle) -> None:
    """512 rows of text, 512 new tokens, and the visual rows of either half."""
    assert allocated_cache_bytes(bundle.manifest) == {"lower": 16 * KV_ROW * 1120, "upper": 16 * KV_ROW * 1056}


def test_flops_of_a_prefill(bundle: Bundle) -> None:
    """Two for a multiply-add; 40 rows of text."""
    flops = 0
    for rows in (40 + 96, 40 + 32):
        projections, attention, mlp = 4 * rows * WIDTH * WIDTH, 2 * rows * rows * WIDTH, 3 * rows * WIDTH * MLP
        flops += 2 * 16 * (projections + attention + mlp)
    assert prefill_flops(bundle.manifest, {"lower": 40 + 96, "upper": 40 + 32}) == flops


def test_flops_that_the_method_names() -> None:
    """docs/method.md: 16 layers at 480 and 16 at 160 of 2880 tokens need 9.89 times fewer."""
    layer = [layer_multiply_adds(tokens, WIDTH, MLP, WIDTH) for tokens in (2880, 480, 160)]
    assert round(2 * layer[0] / (layer[1] + layer[2]), 2) == 9.89


def test_decode_report() -> None:
    """A step of 4 GB at 2 TB/s takes 2 ms at least; 8 ms are a quarter of that speed."""
    report = decode_report(4 * 10**9, 2e12, 8.0)
    assert report == pytest.approx(
        {"bytes_per_token": 4 * 10**9, "tokens_per_s": 125, "floor_tokens_per_s": 500, "share_of_floor": 0.25}
    )
