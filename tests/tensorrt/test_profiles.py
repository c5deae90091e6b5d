"""The sizes of the profiles, against what a bundle promises."""

from __future__ import annotations

import pytest

from sts_export.bundle.manifest import Bundle
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.tensorrt.profiles import is_dynamic, profiles, shapes
from tests.support.bundles import GRAPHS, KEEP, NEW, TEXT

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_dynamic_input_has_ordered_sizes(bundles: dict[str, Bundle], family: str, name: str) -> None:
    manifest = bundles[family].manifest
    for profile in profiles(manifest, name, 3):
        for spec in manifest.graphs[name].inputs:
            least, best, largest = shapes(spec, profile)
            assert len(least) == len(best) == len(largest) == len(spec.shape)
            assert all(1 <= low <= middle <= high for low, middle, high in zip(least, best, largest, strict=True))
            assert is_dynamic(spec) == any(isinstance(size, str) for size in spec.shape)
            if not is_dynamic(spec):
                assert least == best == largest == spec.shape


def test_prefill_holds_the_longest_prompt_and_decode_one_row(bundle: Bundle) -> None:
    """LLaVA-1.5: text + K rows below, text + K' above, and the rows of the answer."""
    keep1, keep2 = KEEP
    prefill, decode = profiles(bundle.manifest, "llm_lower", 4)
    # A prompt writes into its request's own slot of the caches.
    assert (prefill["batch"], decode["batch"]) == ((1, 1, 1), (1, 1, 4))
    # A prompt that leaves room for one token is still taken, and that token's row is never written.
    assert prefill["sequence"][2] == TEXT + keep1 + NEW and prefill["survivors"][2] == TEXT + keep2 + NEW
    assert (prefill["sequence"][2], prefill["survivors"][2]) == (*bundle.manifest.capacities.rows,)
    assert prefill["sequence"][1] < prefill["sequence"][2] and prefill["visual"][1] == keep1
    assert {name: sizes for name, sizes in decode.items() if name != "batch"} == dict.fromkeys(
        ("sequence", "visual", "visual_keep", "survivors"), (1, 1, 1)
    )
    assert profiles(bundle.manifest, "llm_upper", 4) == [prefill, decode]


def test_a_single_crop_and_many(bundles: dict[str, Bundle]) -> None:
    assert profiles(bundles["llava"].manifest, "vision_encoder", 1) == [{"crops": (1, 1, 1)}]
    next_manifest = bundles["llava_next"].manifest
    vision = next_manifest.model.vision
    assert isinstance(vision, ClipVisionConfig)
    crops = next_manifest.model.max_image_tokens // vision.num_patches
    assert crops > 1
    assert profiles(next_manifest, "vision_encoder", 1) == [{"crops": (1, crops, crops)}]
    tokens = next_manifest.model.max_image_tokens
    assert profiles(next_manifest, "selector", 1)[0]["tokens"] == (1, tokens, tokens)
