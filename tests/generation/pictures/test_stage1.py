"""Nothing is computed twice of a picture, and nothing is taken for what it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sts_export import Pipeline
from sts_export.errors import BackendError
from sts_export.generation.graph_runner import GraphRunner
from sts_export.generation.pictures.cache import PictureCache
from sts_export.generation.pictures.stage1 import ENCODER, SELECTOR
from sts_export.generation.result import GenerationResult
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.sampling_config import SamplingConfig
from tests.generation.pictures.methods import METHODS, Cached, Plain
from tests.generation.test_threads import together
from tests.support.mixed_requests import REQUESTS, SQUARE, WIDE, Opened, alone, same
from tests.support.pipelines import Spy
from tests.support.tensorrt_backend import check_nothing_left, open_on

QUESTION, OTHER = "What is on the table?", "Where is the cat?"
NEW: dict[str, Any] = {"max_new_tokens": 4, "ignore_eos": True}


def runs(spy: Spy) -> tuple[int, int]:
    """Of the encoder and of the selector since."""
    return spy.calls.count(ENCODER), spy.calls.count(SELECTOR)


def ask(vlm: Pipeline, prompt: Any = QUESTION, images: Any = WIDE, **more: Any) -> GenerationResult:
    result: GenerationResult = vlm.generate(prompt, images, **{**NEW, **more})
    return result


def what(result: GenerationResult) -> dict[str, Any]:
    return {name: value for name, value in asdict(result).items() if name != "timings_ms"}


def logits(vlm: Pipeline, result: GenerationResult, prompt: str = QUESTION, **more: Any) -> Any:
    return vlm.score(prompt, WIDE, result.token_ids, **more)


# What is found


@pytest.mark.parametrize("name", METHODS)
def test_the_same_again(plain: Plain, cached: Cached, name: str) -> None:
    """The first answer, the second one and that of a pipeline that keeps nothing are the same to the last bit."""
    vlm, spy = cached(name)
    wanted = ask(plain(name))
    for _ in range(2):
        assert what(ask(vlm)) == what(wanted)
        np.testing.assert_array_equal(logits(vlm, wanted), logits(plain(name), wanted))
    assert runs(spy) == (1, 1)
    assert vlm.feature_lookups == vlm.selection_lookups == (3, 1)


@pytest.mark.parametrize("name", METHODS)
def test_another_question(plain: Plain, cached: Cached, name: str) -> None:
    """It is chosen anew where the method reads the question, and only there."""
    vlm, spy = cached(name)
    for prompt in (QUESTION, OTHER, QUESTION, OTHER):
        assert what(ask(vlm, prompt)) == what(ask(plain(name), prompt))
    assert runs(spy) == (1, 2 if name == "cdpruner" else 1)
    if name == "cdpruner":
        assert ask(vlm).kept_stage1 != ask(vlm, OTHER).kept_stage1


@pytest.mark.parametrize("name", METHODS)
def test_another_seed(plain: Plain, cached: Cached, name: str) -> None:
    """It is drawn anew where the method draws; without a seed it is 0, and large ones draw as their rest does."""
    vlm, spy = cached(name)
    seeds = [None, 0, 1, (1 << 31) - 2, (1 << 31) - 1, 1]
    found = [ask(vlm, sampling=SamplingConfig(seed=seed)) for seed in seeds]
    for one, seed in zip(found, seeds, strict=True):
        assert what(one) == what(ask(plain(name), sampling=SamplingConfig(seed=seed)))
    draws = name == "random"
    assert runs(spy) == (1, 2 if draws else 1)
    assert (found[0].kept_stage1 != found[2].kept_stage1) == draws


def test_another_budget(plain: Plain, cached: Cached) -> None:
    """K belongs to the choice, K' does not."""
    vlm, spy = cached("sts")
    for keep, ran in (((20, 8), 1), ((12, 8), 2), ((20, 4), 2), ((12, 2), 2), ((11, 2), 3), ((20, 8), 3)):
        own, wanted = ask(vlm, keep=keep), ask(plain("sts"), keep=keep)
        assert what(own) == what(wanted) and runs(spy) == (1, ran)
        np.testing.assert_array_equal(logits(vlm, own, keep=keep), logits(plain("sts"), own, keep=keep))


def test_other_settings_of_a_method(plain: Plain, cached: Cached) -> None:
    """They are another bundle's, whose pipeline knows nothing of this one's pictures."""
    found = {}
    for name in ("sts", "sts, other settings"):
        vlm, spy = cached(name)
        found[name] = ask(vlm).kept_stage1
        assert runs(spy) == (1, 1) and found[name] == ask(plain(name)).kept_stage1
    assert found["sts"] != found["sts, other settings"]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen"])
def test_requests_of_all_kinds(opened: Opened, family: str) -> None:
    """Without pictures, with one, with two of which one is known or both are; crops that choose more than their share."""
    wanted = alone(opened(family))
    with Pipeline(opened(family).bundle.folder, threads=1, feature_cache=1 << 24) as vlm:
        spy = Spy.on(vlm)
        for _ in range(2):
            same(alone(vlm), wanted)
        first = runs(spy)
        prompts, images = [list(column) for column in zip(*REQUESTS, strict=True)]
        same(vlm.generate(prompts, images), wanted)
        assert runs(spy) == first and first[0] == 3
        cache = vlm._pictures
        assert cache is not None
        assert cache.bytes == sum(entry.bytes for entry in cache._entries.values())
        assert all(array.flags.owndata for entry in cache._entries.values() for array in entry.outputs.values())


def test_an_engine_on_a_gpu(opened: Opened) -> None:
    """Found rows go to the device again."""
    bundle = opened("llava").bundle
    on_gpu = open_on(bundle.folder)
    vlm, cache = on_gpu.pipeline(), PictureCache(1 << 24)
    caches = on_gpu.backend.new_caches(1)
    for prompt, images in REQUESTS[:3]:
        request = vlm.prepare(prompt, images)
        wanted = vlm._graphs.prefill(request, caches, 0)[1]
        for _ in range(2):
            found = GraphRunner(on_gpu.backend, bundle.manifest, cache).prefill(request, caches, 0)[1]
            np.testing.assert_array_equal(found, wanted)
    assert (cache.lookups(ENCODER), cache.lookups(SELECTOR)) == ((0, 2), (4, 2))
    vlm.close()
    check_nothing_left(on_gpu.device)


# Times and counts


def test_times_say_what_was_saved(plain: Plain, cached: Cached) -> None:
    vlm, _ = cached("sts")
    first, again, smaller = (ask(vlm, keep=keep).timings_ms for keep in ((20, 8), (20, 8), (12, 8)))
    assert first.vision > 0 and first.select > 0 and (first.vision_saved, first.select_saved) == (0, 0)
    assert again.vision > 0 and again.select == 0 and again.vision_saved > 0 and again.select_saved > 0
    assert again.vision_saved <= first.vision and again.select_saved <= first.select
    assert smaller.vision_saved > 0 and smaller.select > 0 and smaller.select_saved == 0
    never = ask(plain("sts")).timings_ms
    assert never.select > 0 and (never.vision_saved, never.select_saved) == (0, 0)


def test_lookups_count_pictures(cached: Cached, plain: Plain) -> None:
    vlm, _ = cached("sts")
    for images, keep in ((WIDE, (20, 8)), ([WIDE, SQUARE], (20, 8)), (WIDE, (12, 8)), (None, (20, 8))):
        ask(vlm, images=() if images is None else images, keep=keep)
    assert vlm.feature_lookups == (2, 2) and vlm.selection_lookups == (1, 3)
    ask(plain("sts"))
    assert plain("sts").feature_lookups == plain("sts").selection_lookups == (0, 0)


# Memory


@pytest.mark.parametrize("most", [1, 3_000, 10_000, 20_000])
def test_answers_are_the_same_however_little_fits(plain: Plain, cached: Cached, most: int) -> None:
    vlm, spy = cached("sts", most)
    cache = vlm._pictures
    assert cache is not None
    turns: list[tuple[str, Any, tuple[int, int]]] = [
        (QUESTION, WIDE, (20, 8)),
        (OTHER, [SQUARE, WIDE], (20, 8)),
        (QUESTION, SQUARE, (3, 2)),
        (OTHER, WIDE, (20, 8)),
        (OTHER, WIDE, (3, 2)),
    ]
    for prompt, images, keep in [*turns, *turns]:
        assert what(ask(vlm, prompt, images, keep=keep)) == what(ask(plain("sts"), prompt, images, keep=keep))
        assert cache.bytes == sum(entry.bytes for entry in cache._entries.values()) <= most
    assert runs(spy) == (12, 12) if most == 1 else runs(spy)[1] < 12


# Threads


def asked_together(vlm: Pipeline, asked: Sequence[tuple[str, Any]], wanted: Sequence[dict[str, Any]]) -> None:
    def work(number: int) -> None:
        for turn in range(len(asked)):
            place = (number + turn) % len(asked)
            assert what(ask(vlm, *asked[place])) == wanted[place]

    together(work, 8)


ASKED: list[tuple[str, Any]] = [(QUESTION, WIDE), (OTHER, WIDE), (QUESTION, SQUARE), (OTHER, [SQUARE, WIDE])]


@pytest.mark.parametrize(("name", "chosen"), [("sts", 2), ("cdpruner", 5)])
def test_threads_compute_a_picture_once(plain: Plain, cached: Cached, name: str, chosen: int) -> None:
    vlm, spy = cached(name)
    asked_together(vlm, ASKED, [what(ask(plain(name), *one)) for one in ASKED])
    assert runs(spy) == (2, chosen)


@pytest.mark.parametrize("reuse", [False, True])
def test_requests_of_a_scheduler_compute_a_picture_once(plain: Plain, cached: Cached, reuse: bool) -> None:
    vlm, spy = cached("sts")
    wanted = [ask(plain("sts"), *one).token_ids for one in ASKED]
    with Scheduler(vlm, slots=3, most_waiting=100, reuse_prefixes=reuse) as scheduler:

        def work(number: int) -> None:
            places = [(number + turn) % len(ASKED) for turn in range(len(ASKED))]
            answers = [scheduler.submit(vlm.prepare(*ASKED[place], **NEW)) for place in places]
            for place, answer in zip(places, answers, strict=True):
                assert answer.result.token_ids == wanted[place]

        together(work, 6)
    assert runs(spy) == (2, 2)


# Failures


def test_what_failed_is_not_remembered(plain: Plain, cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, spy = cached("sts")
    run, failed = spy._backend.run, Counter[str]()

    def fails_once(graph: str, *args: Any, **options: Any) -> Any:
        failed[graph] += 1
        if failed[graph] == 1 and graph in (ENCODER, SELECTOR):
            raise BackendError("the engine failed")
        return run(graph, *args, **options)

    monkeypatch.setattr(spy._backend, "run", fails_once)
    for _ in range(2):
        with pytest.raises(BackendError, match="the engine failed"):
            ask(vlm)
    for _ in range(2):
        assert what(ask(vlm)) == what(ask(plain("sts")))
    assert runs(spy) == (2, 2)  # features were there when the selector failed


def test_a_folder_is_of_no_matter(cached: Cached, tmp_path: Path) -> None:
    """A picture is what it shows: from a file and from memory it is the same."""
    vlm, spy = cached("sts")
    WIDE.save(tmp_path / "a.png")
    assert what(ask(vlm, images=tmp_path / "a.png")) == what(ask(vlm)) and runs(spy) == (1, 1)
