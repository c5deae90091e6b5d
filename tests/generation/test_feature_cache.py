"""Features of the last pictures: bounded, exact, and by content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sts_export import Pipeline
from sts_export.generation.feature_cache import FeatureCache, Features
from sts_export.testing.checkpoints import random_image
from tests.support.pipelines import Spy


def features(size: int) -> Features:
    return Features({"visual_features": np.zeros(size, np.uint8)}, 1.0)


def test_the_least_recently_used_go() -> None:
    cache = FeatureCache(30)
    for name in "abc":
        cache.put(name, features(10))
    assert cache.get("a") is not None
    cache.put("d", features(15))
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "d"]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = FeatureCache(30)
    cache.put("a", features(10))
    cache.put("b", features(31))
    assert cache.get("a") is not None and cache.get("b") is None


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.array([1, 2, 4], np.int32)},
        {"y": np.array([1, 2, 3], np.int32)},
        {"x": np.array([[1, 2, 3]], np.int32)},
        {"x": np.array([1, 2, 3], np.uint32)},
        {"x": np.array([1, 2, 3], np.int32), "y": np.zeros(1)},
    ],
)
def test_names_types_shapes_and_bytes_make_the_key(other: dict[str, NDArray[Any]]) -> None:
    one = {"x": np.array([1, 2, 3], np.int32)}
    assert FeatureCache.key(one) == FeatureCache.key({"x": np.array([1, 0, 2, 0, 3], np.int32)[::2]})
    assert FeatureCache.key(one) != FeatureCache.key(other)


def test_answers_are_the_same_with_and_without(vlm: Pipeline, bundle: object) -> None:
    pictures = [random_image(1), random_image(2), random_image(1)]
    with Pipeline(str(bundle), threads=1, feature_cache=1 << 24) as cached:
        spy = Spy.on(cached)
        for earlier, picture in enumerate(pictures):
            plain = vlm.generate("What is it?", picture, max_new_tokens=4)
            own = cached.generate("What is it?", picture, max_new_tokens=4)
            assert (own.token_ids, own.kept_stage1, own.kept_stage2) == (plain.token_ids, plain.kept_stage1, plain.kept_stage2)
            assert own.timings_ms.vision > 0
            assert (own.timings_ms.vision_saved > 0) == (earlier == 2) and plain.timings_ms.vision_saved == 0
            np.testing.assert_array_equal(
                cached.score("What?", picture, own.token_ids), vlm.score("What?", picture, own.token_ids)
            )
        assert spy.calls.count("vision_encoder") == 2
        assert cached.feature_lookups == (4, 2) and vlm.feature_lookups == (0, 0)
