"""Every method on every family: bundles on ONNX Runtime against the PyTorch reference.

Kept sets, what was merged into what, and tokens equal the reference's, and every logit is within 1e-3.  Where K is at least N
and nothing is merged, tokens are the unpruned model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sts_export import Pipeline
from sts_export.native import libraries
from sts_export.pruning.methods import METHODS
from sts_export.pruning.registry import find_method
from sts_export.reference import ReferenceModel, generate
from sts_export.reference.selector import load_selector
from sts_export.testing.checkpoints import RandomLlava, RandomLlavaNext, RandomQwen25VL, random_prompt
from sts_export.testing.checkpoints.selectors import write_random_selector
from tests.backends.onnxruntime.fake_gpu import fake_gpu
from tests.support.parity import TOLERANCE, Case, Spec, Workshop, pictures, relative_error

torch.set_num_threads(1)
TOKENS = 12
SETS = [[(84, 84)], [(300, 60)], [(640, 480), (90, 200)]]
ROOM = (("max_prompt_tokens", 220), ("max_new_tokens", TOKENS + 2), ("max_visual_tokens", 700))
FAMILIES: dict[str, Spec] = {
    "llava": RandomLlava(seed=40, kv_heads=4),
    "llava_next": RandomLlavaNext(seed=41, decoder="vicuna", kv_heads=2),
    "qwen2_5_vl": RandomQwen25VL(seed=42, max_pixels=120 * 784),
}
# Share of each picture that is kept, where a method may drop tokens at all.
BUDGETS = {"none": "100%", "fastv": "70%", "dart": "70%"}
# Stages 1 that keep the CLS token, merge or read the prompt, each before a stage 2 of another method.
MIXED = [("visionzip", "last-token"), ("vscan", "text-visual"), ("cdpruner", "dart"), ("visionzip", "random")]
PAIRS = [(family, method.name) for family in FAMILIES for method in METHODS]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("methods"))


def is_learned(method: str) -> bool:
    return find_method(method).stage1 == "learned"


def selector(shop: Workshop, family: str) -> Path:
    """Weights of a learned selector for the family's tower."""
    width = shop.pipeline(case(shop, family, "none", "100%")).manifest.model.tower.width
    return write_random_selector(shop.folder / f"{family}.safetensors", width)


def case(shop: Workshop, family: str, method: str, budget: str) -> Case:
    own = (("selector_weights", str(selector(shop, family))),) if is_learned(method) else ()
    return Case(f"{family}-{method}-{budget}", FAMILIES[family], (("method", method), ("budget", budget), *ROOM, *own))


def weights(shop: Workshop, family: str, method: str) -> Mapping[str, torch.Tensor]:
    return load_selector(selector(shop, family)) if is_learned(method) else {}


def prompt(images: int, seed: int) -> list[dict[str, Any]]:
    text = {"type": "text", "text": random_prompt(seed)}
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(images)), text]}]


def compare(vlm: Pipeline, model: ReferenceModel, own: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """The bundle's answers are the reference's.  Returns how many visual tokens were dropped and how many were merged."""
    config = vlm.manifest.pruning
    dropped = merged = 0
    for index, sizes in enumerate(SETS):
        asked, images = prompt(len(sizes), index), pictures(50 + index, sizes)
        ours = vlm.generate(asked, images, max_new_tokens=TOKENS, ignore_eos=True)
        theirs = generate(model, asked, images, config, TOKENS, ignore_eos=True, selector=own)
        margins = theirs.trace.margins
        clearness = f"least margin of stage 1: {float(margins.min()) if len(margins) else 1:.1e}"
        assert ours.kept_stage1 == theirs.kept_stage1, clearness
        assert (ours.cls_tokens, ours.merged_into) == (theirs.cls_tokens, theirs.merged_into), clearness
        assert ours.kept_stage2 == theirs.kept_stage2, clearness
        assert ours.token_ids == theirs.token_ids
        assert ours.prompt_tokens == theirs.prompt_tokens
        keeps = [sum(of_part) for of_part in zip(*map(config.keeps, theirs.num_visual_tokens), strict=True)]
        assert [ours.visual_tokens.stage1, ours.visual_tokens.stage2] == keeps
        assert relative_error(vlm.score(asked, images, theirs.token_ids), theirs.logits) < TOLERANCE
        dropped += ours.visual_tokens.total - ours.visual_tokens.stage2
        merged += sum(target >= 0 for targets in ours.merged_into or [] for target in targets)
    return dropped, merged


@pytest.mark.parametrize(("family", "method"), PAIRS, ids="-".join)
def test_methods_are_the_reference(shop: Workshop, family: str, method: str) -> None:
    vlm = shop.pipeline(case(shop, family, method, BUDGETS.get(method, "30%")))
    dropped, merged = compare(vlm, shop.reference(FAMILIES[family]), weights(shop, family, method))
    assert (dropped > 0) == (method != "none")
    assert (merged > 0) == vlm.manifest.pruning.stage1.merges


@pytest.mark.parametrize(("family", "method"), PAIRS, ids="-".join)
def test_graphs_rewritten_for_cuda(shop: Workshop, family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's CPU runs the forms that CUDA sessions get; what CUDA's kernels compute is not shown."""
    bundle = shop.pipeline(case(shop, family, method, BUDGETS.get(method, "30%"))).bundle.folder
    model, own = shop.reference(FAMILIES[family]), weights(shop, family, method)
    monkeypatch.setattr(libraries, "own_folders", list)  # whatever has been built or installed on this machine
    fake_gpu(monkeypatch)
    compare(Pipeline(bundle, backend="onnxruntime-cuda"), model, own)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("stage1", "stage2"), MIXED, ids="-".join)
def test_stages_of_different_methods(shop: Workshop, family: str, stage1: str, stage2: str) -> None:
    """CLS and merged tokens before a stage that drops inside the LLM, a prompt read by both stages."""
    attention = ":score=received" if family == "qwen2_5_vl" and stage1 in ("visionzip", "vscan") else ""
    options = (("stage1", stage1 + attention), ("stage2", stage2), ("budget", "30%"), *ROOM)
    exported = Case(f"{family}-{stage1}-{stage2}", FAMILIES[family], options)
    vlm = shop.pipeline(exported)
    dropped, merged = compare(vlm, shop.reference(exported.spec), {})
    config = vlm.manifest.pruning
    assert config.keep_stage2 < config.keep_stage1 and dropped > 0
    assert (merged > 0) == config.stage1.merges


@pytest.mark.parametrize(("family", "method"), PAIRS, ids="-".join)
def test_where_all_is_kept_the_model_is_unpruned(shop: Workshop, family: str, method: str) -> None:
    vlm, model = shop.pipeline(case(shop, family, method, "100%")), shop.reference(FAMILIES[family])
    for index, sizes in enumerate(SETS):
        asked, images = prompt(len(sizes), index), pictures(60 + index, sizes)
        theirs = generate(model, asked, images, None, TOKENS, ignore_eos=True)
        ours = vlm.generate(asked, images, max_new_tokens=TOKENS, ignore_eos=True)
        assert ours.token_ids == theirs.token_ids
        assert ours.kept_stage2 == list(range(ours.visual_tokens.total))
        assert not any(target >= 0 for targets in ours.merged_into or [] for target in targets)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["visionzip", "vscan", "hiprune", "cdpruner", "random", "learnpruner"])
def test_pictures_smaller_than_k_lose_nothing(shop: Workshop, family: str, method: str) -> None:
    """Counts are the same for every picture: a small one has no more than K tokens, and is the unpruned model's."""
    if family == "llava":
        return  # all its pictures have one size
    vlm, model = shop.pipeline(_counts(shop, family, method)), shop.reference(FAMILIES[family])
    asked, images = prompt(1, 3), pictures(70, [(84, 84)])
    theirs = generate(model, asked, images, None, TOKENS, ignore_eos=True)
    ours = vlm.generate(asked, images, max_new_tokens=TOKENS, ignore_eos=True)
    assert ours.visual_tokens.stage2 == ours.visual_tokens.total and ours.cls_tokens == 0
    assert ours.token_ids == theirs.token_ids


def _counts(shop: Workshop, family: str, method: str) -> Case:
    """K and K' just below N of the largest picture."""
    full = shop.pipeline(case(shop, family, method, "100%")).manifest.pruning.num_visual_tokens
    own = (("selector_weights", str(selector(shop, family))),) if is_learned(method) else ()
    return Case(
        f"{family}-{method}-counts", FAMILIES[family], (("method", method), ("keep", (full - 1, full - 1)), *ROOM, *own)
    )
