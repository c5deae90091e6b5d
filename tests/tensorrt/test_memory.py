"""The memory estimate, against sizes counted from the files and the formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from sts_export.bundle.manifest import Bundle
from sts_export.checkpoints.safetensors_header import read_header
from sts_export.errors import BackendError
from sts_export.pruning.stage1.repulsion import Repulsion
from sts_export.pruning.stage2.last_token import LastToken
from sts_export.tensorrt.device import Gpu
from sts_export.tensorrt.memory import (
    MemoryEstimate,
    _decoder_activations,
    _selection_activations,
    _vision_activations,
    check_memory,
    estimate,
)
from sts_export.tensorrt.profiles import profiles
from tests.support.bundles import KEEP, NEW, TEXT, export_to
from tests.support.held import held_bytes


def gpu(memory: int) -> Gpu:
    return Gpu("NVIDIA Imaginary", "sm_99", memory, memory)


def test_weights_and_caches_are_counted(bundle: Bundle) -> None:
    decoder, layer = bundle.manifest.model.decoder, bundle.manifest.pruning.prune_layer
    a_row = 2 * decoder.num_kv_heads * decoder.head_dim * 2  # key and value, two bytes
    rows = layer * (TEXT + KEEP[0] + NEW) + (decoder.num_layers - layer) * (TEXT + KEEP[1] + NEW)
    for batch in (1, 4):
        assert estimate(bundle, batch, fused=True).caches == batch * rows * a_row
    stored = sum(tensor.nbytes for tensor in read_header(bundle.weights_folder / "weights.safetensors")[0].values())
    need = estimate(bundle, 1, fused=True)
    # Tables (rotary positions) lie in the graphs themselves.
    assert stored <= need.weights < stored + sum(record.size for record in bundle.manifest.graph_files.values())
    assert need.largest < need.weights
    assert need.activations > 0


def test_prompts_are_prefilled_one_at_a_time(bundle: Bundle) -> None:
    """Decoding takes a row of each request: no more than a prompt does, until there are more requests than rows."""
    rows = TEXT + KEEP[0] + NEW
    for fused in (True, False):
        alone = estimate(bundle, 1, fused=fused).activations
        assert estimate(bundle, rows, fused=fused).activations == alone
        assert estimate(bundle, 8 * rows, fused=fused).activations > alone


def test_old_versions_need_two_caches_and_room_for_scores(bundle: Bundle) -> None:
    new, old = estimate(bundle, 2, fused=True), estimate(bundle, 2, fused=False)
    assert old.caches == 2 * new.caches
    rows = TEXT + KEEP[0] + NEW
    assert old.activations >= bundle.manifest.model.decoder.num_heads * rows * rows * 4


def test_large_pictures_need_their_matrices(bundles: dict[str, Bundle]) -> None:
    """Pairs of a Qwen picture's tokens; scores of its full-attention layers where they are not fused."""
    manifest = bundles["qwen2_5_vl"].manifest
    tokens = manifest.model.max_image_tokens
    patches = 4 * tokens
    assert estimate(bundles["qwen2_5_vl"], 1, fused=True).activations >= 3 * 4 * tokens**2
    assert estimate(bundles["qwen2_5_vl"], 1, fused=False).activations >= 4 * manifest.model.vision.num_heads * patches**2


def test_rows_of_attention_are_counted(bundles: dict[str, Bundle]) -> None:
    """Those that stage 1 needs of the tower, also where attention itself is fused."""
    manifest = bundles["llava"].manifest
    saliency = replace(manifest, pruning=replace(manifest.pruning, stage1=Repulsion("saliency")))
    each = [replace(bundles["llava"], manifest=item) for item in (manifest, saliency)]
    plain, with_rows = (_vision_activations(bundle, scores=False) for bundle in each)
    assert with_rows - plain == manifest.model.tower.scratch_bytes({"cls_attention"}) > 0


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
def test_rows_that_stage_1_compares_are_counted(checkpoints: dict[str, Path], tmp_path: Path, family: str, method: str) -> None:
    """All rows in the LLM's width, and the prompt's text: against the tensors of the selector."""
    pruned = export_to(checkpoints[family], tmp_path / "bundle", "float16", method=method, keep=(12, 12))
    manifest, rng = pruned.manifest, np.random.default_rng(0)
    (profile,) = profiles(manifest, "selector", 1)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in manifest.graphs["selector"].inputs:
        shape = [size if isinstance(size, int) else profile[size][2] for size in spec.shape]
        feeds[spec.name] = np.ones(shape, spec.dtype) if spec.dtype != "float16" else rng.standard_normal(shape).astype("f2")
    feeds["token_order"] = np.arange(profile["tokens"][2])
    found = held_bytes(onnx.load(str(pruned.graph_file("selector"))), feeds)
    assert found <= _selection_activations(pruned) < 2 * found


def test_scores_of_text_rows_are_counted(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Those of stage 2, which takes all rows where a prompt has no picture; attention's own are not held then."""
    star = export_to(checkpoints["llava"], tmp_path / "bundle", "float16", method="star")
    pruning = replace(star.manifest.pruning, method="received-attention+last-token", stage2=LastToken())
    plain = replace(star, manifest=replace(star.manifest, pruning=pruning))
    rows, heads = TEXT + KEEP[0] + NEW, star.manifest.model.decoder.num_heads
    with_scores, without = (_decoder_activations(bundle, 1, scores=False) for bundle in (star, plain))
    assert with_scores - without == 2 * heads * rows**2 * 4
    assert _decoder_activations(star, 1, scores=True) == with_scores


def test_what_does_not_fit_is_refused_with_figures_and_ways_out() -> None:
    need = MemoryEstimate(weights=14_000_000_000, caches=1_500_000_000, activations=300_000_000, largest=7_000_000_000)
    with pytest.raises(BackendError) as refused:
        check_memory(need, gpu(8_000_000_000), max_batch=2)
    message = str(refused.value)
    for part in ("about 16.3 GB are needed", "14.0 GB weights", "1.5 GB KV caches", "has 8.0 GB", "--max-batch", "--dtype"):
        assert part in message
    assert "\n" not in message


def test_building_counts_the_largest_graph_twice() -> None:
    need = MemoryEstimate(weights=10_000_000_000, caches=0, activations=0, largest=10_000_000_000)
    check_memory(need, gpu(21_000_000_000), max_batch=1)
    with pytest.raises(BackendError, match=r"building takes about 20\.5 GB"):
        check_memory(need, gpu(20_000_000_000), max_batch=1)


def test_without_a_gpu_nothing_is_known() -> None:
    check_memory(MemoryEstimate(10**15, 0, 0, 10**15), None, max_batch=1)
