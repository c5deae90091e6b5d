"""The TensorRT backend on fakes of TensorRT and CUDA against transformers and the PyTorch reference, in all families.

The engines are the bundle's own graphs under ONNX Runtime, so what is tested is all that the backend does: shapes, profiles,
addresses, caches, staging, captured decode steps.  Tokens and kept sets must be equal and every logit within 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sts_export import Pipeline
from sts_export.reference import generate
from sts_export.testing.checkpoints import RandomLlava, RandomLlavaNext, RandomQwen25VL, random_prompt
from tests.support.parity import Case, Transformers, Workshop, pictures, relative_error
from tests.support.tensorrt_backend import FLAVOURS, NEW, OLD, RTX, Flavour, Opened, open_on

torch.set_num_threads(1)
TOKENS = 16
TOLERANCE = 1e-3
SIZES = [(84, 84), (300, 40), (200, 150), (640, 480)]
ROOM = (("max_prompt_tokens", 120), ("max_new_tokens", TOKENS + 2), ("max_visual_tokens", 700))

CHECKPOINTS: dict[str, Any] = {
    "llava": RandomLlava(seed=40, kv_heads=4),
    "next": RandomLlavaNext(seed=41, decoder="vicuna", kv_heads=1),
    "qwen": RandomQwen25VL(seed=42, max_pixels=120 * 784),
}


class Choices(dict[str, str]):
    """A dict that can be part of a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


def case(checkpoint: str, label: str, **request: Any) -> Case:
    fields = {"prune_layer": 2, **dict(ROOM), **request}
    frozen = tuple((key, value if key != "choices" else Choices(value)) for key, value in sorted(fields.items()))
    return Case(f"{checkpoint}-{label}", CHECKPOINTS[checkpoint], frozen)


UNPRUNED = [case(name, "unpruned", budget="100%") for name in CHECKPOINTS]
PRUNED = [
    case("llava", "reindex", budget="12", choices={"positions": "reindex"}),
    case("llava", "keep-saliency", keep=(20, 7), choices={"positions": "keep", "anchor": "saliency"}),
    case("next", "reindex", budget="20%"),
    case("next", "keep", keep=(100, 30), choices={"positions": "keep", "score_layer": "next"}),
    case("qwen", "keep", budget="20%"),
    case("qwen", "reindex", budget="16", choices={"positions": "reindex"}),
]


def messages(images: int, seed: int) -> list[dict[str, Any]]:
    text = {"type": "text", "text": random_prompt(seed)}
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(images)), text]}]


class Shop(Workshop):
    """Backends and pipelines, each opened once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: dict[tuple[Case, Flavour], tuple[Opened, Pipeline]] = {}

    def on(self, which: Case, flavour: Flavour) -> tuple[Opened, Pipeline]:
        key = (which, flavour)
        if key not in self.opened:
            opened = open_on(self.pipeline(which).bundle.folder, flavour)
            self.opened[key] = opened, opened.pipeline()
        return self.opened[key]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("tensorrt-parity"))
    yield made
    for opened, pipeline in made.opened.values():
        pipeline._free_caches.clear()
        assert opened.device.problems == []
        opened.backend.close()
        assert (opened.device.live(True), opened.device.live(False), opened.device.live_graphs()) == (0, 0, 0)


@pytest.mark.parametrize("flavour", [NEW, OLD], ids=str)
@pytest.mark.parametrize("which", UNPRUNED, ids=str)
def test_unpruned_is_transformers_generate(shop: Shop, which: Case, flavour: Flavour) -> None:
    theirs, (_, vlm) = Transformers(shop.checkpoint(which.spec), which.spec), shop.on(which, flavour)
    for index, sizes in enumerate([[SIZES[0]], [SIZES[3]], [SIZES[1], SIZES[2]], []]):
        images, prompt = pictures(index, sizes), messages(len(sizes), index)
        expected, logits = theirs.generate(prompt, images, TOKENS)
        ours = vlm.generate(prompt, images, max_new_tokens=TOKENS, ignore_eos=True)
        assert ours.token_ids == expected
        assert relative_error(vlm.score(prompt, images, expected), logits) < TOLERANCE


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
@pytest.mark.parametrize("which", PRUNED, ids=str)
def test_pruned_is_the_reference(shop: Shop, which: Case, flavour: Flavour) -> None:
    opened, vlm = shop.on(which, flavour)
    config = vlm.manifest.pruning
    for index, sizes in enumerate([[SIZES[0]], [SIZES[3]], [SIZES[2], SIZES[1]], [SIZES[1], SIZES[0], SIZES[2]], []]):
        images, prompt = pictures(10 + index, sizes), messages(len(sizes), 20 + index)
        ours = vlm.generate(prompt, images, max_new_tokens=TOKENS, ignore_eos=True)
        theirs = generate(shop.reference(which.spec), prompt, images, config, TOKENS, ignore_eos=True)
        assert ours.kept_stage1 == theirs.kept_stage1
        assert ours.kept_stage2 == theirs.kept_stage2
        assert ours.token_ids == theirs.token_ids
        assert relative_error(vlm.score(prompt, images, theirs.token_ids), theirs.logits) < TOLERANCE
    assert opened.device.calls["cudaGraphLaunch"] > 0


@pytest.mark.parametrize("which", [PRUNED[0], PRUNED[3], PRUNED[4]], ids=str)
def test_budgets_of_requests_are_the_reference(shop: Shop, which: Case) -> None:
    """Engines that were built for the bundle's own take each that is smaller."""
    _, vlm = shop.on(which, RTX)
    images, prompt = pictures(30, [SIZES[2], SIZES[0]]), messages(2, 31)
    asked: list[dict[str, Any]] = [{"budget": "3%"}, {"budget": 5}, {"keep": (11, 2)}, {"keep": (1, 1)}]
    for own in asked:
        ours = vlm.generate(prompt, images, max_new_tokens=TOKENS, ignore_eos=True, **own)
        theirs = generate(shop.reference(which.spec), prompt, images, vlm.pruning(**own), TOKENS, ignore_eos=True)
        assert (ours.kept_stage1, ours.kept_stage2) == (theirs.kept_stage1, theirs.kept_stage2)
        assert ours.token_ids == theirs.token_ids
        assert relative_error(vlm.score(prompt, images, theirs.token_ids, **own), theirs.logits) < TOLERANCE


@pytest.mark.parametrize("flavour", [RTX, OLD], ids=str)
@pytest.mark.parametrize("which", PRUNED, ids=str)
def test_batches_are_the_reference(shop: Shop, which: Case, flavour: Flavour) -> None:
    """Prompts of several lengths together: with one image of several sizes, and without."""
    _, vlm = shop.on(which, flavour)
    sets = [[SIZES[0]], [SIZES[0]], [SIZES[2]], [], [], [SIZES[3]]]
    prompts = [messages(len(sizes), 50 + index) for index, sizes in enumerate(sets)]
    images = [pictures(50 + index, sizes) for index, sizes in enumerate(sets)]
    together = vlm.generate(prompts, images, max_new_tokens=TOKENS, ignore_eos=True, batch_size=3)
    for prompt, own, ours in zip(prompts, images, together, strict=True):
        theirs = generate(shop.reference(which.spec), prompt, own, vlm.manifest.pruning, TOKENS, ignore_eos=True)
        assert (ours.kept_stage1, ours.kept_stage2) == (theirs.kept_stage1, theirs.kept_stage2)
        assert ours.token_ids == theirs.token_ids
