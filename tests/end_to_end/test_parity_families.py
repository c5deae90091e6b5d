"""LLaVA-NeXT, Qwen2.5-VL and several images: bundles on ONNX Runtime against transformers and the PyTorch reference.

Unpruned, tokens equal those of transformers' own generate; pruned, kept sets and tokens equal the reference's and every
logit is within 1e-3.  Nothing is excused as a near-tie.  LLaVA-1.5 with one image has its own file, test_parity.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sts_export import Pipeline
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.reference import generate
from sts_export.requests.rows import place_images
from sts_export.testing.checkpoints import RandomLlava, RandomLlavaNext, RandomQwen25VL, random_prompt
from tests.support.parity import TOLERANCE, Case, Messages, Transformers, Workshop, pictures, relative_error

torch.set_num_threads(1)
TOKENS = 32

# The tilings of LLaVA-NeXT in every direction, and strips of which unpadding leaves little or nothing.
SIZES = [(84, 84), (300, 40), (30, 400), (200, 150), (640, 480)]
STRIPS = [(1000, 10), (10, 1000)]
IMAGE_SETS = [
    *([size] for size in [*SIZES, *STRIPS]),
    [SIZES[0], SIZES[3]],
    [SIZES[4], SIZES[1]],
    [SIZES[2], SIZES[3], SIZES[0]],
]
ROOM = (("max_prompt_tokens", 220), ("max_new_tokens", TOKENS + 2), ("max_visual_tokens", 700))

CHECKPOINTS: dict[str, Any] = {
    "llava": RandomLlava(seed=20, kv_heads=4),
    "llava-4x": RandomLlava(seed=21, kv_heads=1, layout="4.x"),
    "next-vicuna": RandomLlavaNext(seed=22, decoder="vicuna", kv_heads=4),
    "next-mistral-4x": RandomLlavaNext(seed=23, decoder="mistral", layout="4.x", layers=5),
    "next-mistral-memory": RandomLlavaNext(seed=24, decoder="mistral", kv_heads=1, layout="memory-4.52"),
    "qwen": RandomQwen25VL(seed=25, max_pixels=120 * 784),
    "qwen-4x": RandomQwen25VL(seed=26, kv_heads=4, tied_embeddings=True, layout="4.x", layers=3),
    "qwen-memory": RandomQwen25VL(seed=27, kv_heads=1, layout="memory-4.52", fullatt_block_indexes=(0, 2), min_pixels=3136),
}


def case(checkpoint: str, layer: int, label: str, **request: Any) -> Case:
    fields = {"prune_layer": layer, **dict(ROOM), **request}
    choices = fields.get("choices", {})
    frozen = tuple((key, value if key != "choices" else Choices(choices)) for key, value in sorted(fields.items()))
    return Case(f"{checkpoint}-{label}", CHECKPOINTS[checkpoint], frozen)


class Choices(dict[str, str]):
    """A dict that can be part of a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


UNPRUNED = [case(name, 2 if name != "qwen-4x" else 1, "unpruned", budget="100%") for name in CHECKPOINTS]
PRUNED = [
    case("llava", 2, "b12", budget="12"),
    case("llava-4x", 1, "20pct-keep", budget="20%", choices={"positions": "keep", "score_layer": "next"}),
    case("llava", 3, "b9-original", budget="9", choices={"positions": "original"}),
    case("next-vicuna", 2, "20pct", budget="20%"),
    case("next-mistral-memory", 1, "25pct-original", budget="25%", choices={"positions": "original", "score_layer": "next"}),
    case("next-vicuna", 3, "k40-saliency", keep=(40, 11), choices={"anchor": "saliency", "positions": "keep"}),
    case("next-mistral-4x", 1, "b30-next", budget="30", choices={"anchor": "first", "score_layer": "next"}),
    case("next-mistral-4x", 4, "k100", keep=(100, 30)),
    case("next-mistral-memory", 2, "k170", keep=(170, 60)),  # more than most images have
    case("qwen", 2, "20pct", budget="20%"),
    case("qwen", 1, "b16-reindex", budget="16", choices={"positions": "reindex", "anchor": "first"}),
    case("qwen-4x", 2, "k24-next", keep=(24, 9), choices={"score_layer": "next"}),
    case("qwen-4x", 1, "70pct", budget="70%"),  # K = N, and K' above a third of it
    case("qwen-memory", 3, "10pct-reindex", budget="10%", choices={"positions": "reindex"}),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("parity-families"))


def single_turn(images: int, seed: int) -> Messages:
    text = {"type": "text", "text": random_prompt(seed)}
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(images)), text]}]


def chat(images: int, seed: int) -> Messages:
    """Three turns, the images spread over the user's ones."""
    first, rest = min(1, images), max(0, images - 1)
    return [
        {"role": "user", "content": [*[{"type": "image"}] * first, {"type": "text", "text": random_prompt(seed)}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The cat is on the table."}]},
        {"role": "user", "content": [*[{"type": "image"}] * rest, {"type": "text", "text": random_prompt(seed + 1)}]},
    ]


def check_unpruned(vlm: Pipeline, theirs: Transformers, messages: Messages, images: list[Any]) -> None:
    expected, logits = theirs.generate(messages, images, TOKENS)
    ours = vlm.generate(messages, images, max_new_tokens=TOKENS, ignore_eos=True)
    assert ours.token_ids == expected
    assert ours.prompt_tokens == theirs.inputs(messages, images)["input_ids"].shape[1]
    assert ours.kept_stage2 == list(range(ours.visual_tokens.total))
    assert relative_error(vlm.score(messages, images, expected), logits) < TOLERANCE


@pytest.mark.parametrize("which", UNPRUNED, ids=str)
def test_unpruned_is_transformers_generate(shop: Workshop, which: Case) -> None:
    vlm, theirs = shop.pipeline(which), Transformers(shop.checkpoint(which.spec), which.spec)
    for index, sizes in enumerate(IMAGE_SETS):
        check_unpruned(vlm, theirs, single_turn(len(sizes), index), pictures(index, sizes))
    check_unpruned(vlm, theirs, chat(1, 3), pictures(30, [SIZES[3]]))
    check_unpruned(vlm, theirs, chat(3, 5), pictures(31, [SIZES[1], SIZES[4], SIZES[0]]))
    check_unpruned(vlm, theirs, single_turn(0, 7), [])
    check_unpruned(
        vlm,
        theirs,
        [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *chat(1, 8)][
            0 if takes_system(which) else 1 :
        ],
        pictures(32, [SIZES[0]]),
    )


def takes_system(which: Case) -> bool:
    """The template of LLaVA-NeXT-Mistral has no place for a system prompt."""
    return "mistral" not in which.name


def check_pruned(shop: Workshop, which: Case, messages: Messages, images: list[Any]) -> None:
    vlm = shop.pipeline(which)
    ours = vlm.generate(messages, images, max_new_tokens=TOKENS, ignore_eos=True)
    config = vlm.manifest.pruning
    theirs = generate(shop.reference(which.spec), messages, images, config, TOKENS, ignore_eos=True)
    margins = theirs.trace.margins
    clearness = f"least margin of stage 1: {float(margins.min()) if len(margins) else np.inf:.1e}"
    assert ours.kept_stage1 == theirs.kept_stage1, clearness
    assert ours.kept_stage2 == theirs.kept_stage2, clearness
    assert ours.token_ids == theirs.token_ids
    assert ours.prompt_tokens == theirs.prompt_tokens
    keeps = [config.keeps(count) for count in theirs.num_visual_tokens]
    assert ours.visual_tokens.total == sum(theirs.num_visual_tokens)
    assert [len(kept) for kept in ours.kept_stage1] == [keep1 for keep1, _ in keeps]
    assert len(ours.kept_stage2) == sum(keep2 for _, keep2 in keeps)
    assert relative_error(vlm.score(messages, images, theirs.token_ids), theirs.logits) < TOLERANCE


@pytest.mark.parametrize("index", range(len(IMAGE_SETS)))
@pytest.mark.parametrize("which", PRUNED, ids=str)
def test_pruned_is_the_reference(shop: Workshop, which: Case, index: int) -> None:
    sizes = IMAGE_SETS[index]
    check_pruned(shop, which, single_turn(len(sizes), index), pictures(index, sizes))


@pytest.mark.parametrize("which", PRUNED, ids=str)
def test_chats(shop: Workshop, which: Case) -> None:
    check_pruned(shop, which, chat(1, 3), pictures(30, [SIZES[3]]))
    check_pruned(shop, which, chat(3, 5), pictures(31, [SIZES[1], SIZES[4], SIZES[0]]))
    check_pruned(shop, which, chat(0, 6), [])


@pytest.mark.parametrize("which", PRUNED, ids=str)
def test_batches_are_singles(shop: Workshop, which: Case) -> None:
    """Prompts of several lengths and images of several sizes, text among them."""
    vlm = shop.pipeline(which)
    sets = [[SIZES[0]], [SIZES[3]], [SIZES[0]], [], [SIZES[4]], [SIZES[1], SIZES[2]], [SIZES[3]]]
    prompts = [single_turn(len(sizes), index) for index, sizes in enumerate(sets)]
    prompts[2] = chat(1, 9)
    images = [pictures(40 + index, sizes) for index, sizes in enumerate(sets)]
    together = vlm.generate(prompts, images, max_new_tokens=TOKENS, ignore_eos=True)
    for prompt, own, result in zip(prompts, images, together, strict=True):
        alone = vlm.generate(prompt, own, max_new_tokens=TOKENS, ignore_eos=True)
        assert result.token_ids == alone.token_ids
        assert (result.kept_stage1, result.kept_stage2) == (alone.kept_stage1, alone.kept_stage2)
        assert result.prompt_tokens == alone.prompt_tokens
        assert result.kv_cache_bytes == alone.kv_cache_bytes


# The query of stage 2


def kept_with_query_at(vlm: Pipeline, messages: Messages, images: list[Any], row: int | None) -> list[int]:
    """Rows that stage 2 keeps when the attention of prompt row ``row`` decides; None is the graph's own choice."""
    request = vlm.prepare(messages, images)
    backend = vlm._backend
    stage1, embeds = [], []
    for image, (keep, _) in zip(request.images, request.keeps, strict=True):
        features = backend.run("vision_encoder", image.encoder_inputs)
        feeds = {**features, "token_order": image.token_order, "quota": image.quota(keep)}
        chosen = backend.run("selector", feeds, fetch=("kept_index",))
        stage1.append(chosen["kept_index"][:keep])
        embeds.append(backend.rows(chosen["visual_embeds"], keep))
    mrope = bool(vlm.manifest.model.decoder.mrope_section)
    prompt = place_images(request.input_ids, request.images, stage1, mrope=mrope, unpruned=mrope)
    mask = np.ones_like(prompt.input_ids)
    if row is not None:
        mask[row + 1 :] = 0  # the graph takes the last row that the mask calls real
    inputs = {
        "input_ids": prompt.input_ids[None],
        "attention_mask": mask[None],
        "position_ids": prompt.position_ids[None],
        "write_index": np.zeros(1, np.int64),
        "visual_embeds": backend.joined(embeds),
        "stage2_slots": np.zeros(sum(keeps[-1] for keeps in request.keeps), np.int64),
    }
    outputs = backend.run("llm_lower", inputs, caches=backend.new_caches(1), slot=0, fetch=("kept_rows",))
    (rows,) = outputs["kept_rows"]
    visual = np.flatnonzero(prompt.input_ids == VISUAL_ROW)
    kept: list[int] = np.intersect1d(rows, visual).tolist()
    return kept


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("next-vicuna-20pct", [SIZES[4]]),  # newlines are rows, but no visual tokens
        ("next-mistral-4x-k100", [SIZES[4], SIZES[2]]),
        ("llava-b12", [SIZES[0], SIZES[3]]),  # the second image's rows are not counted
        ("qwen-20pct", [SIZES[0], SIZES[3], SIZES[4]]),
    ],
    ids=str,
)
def test_the_last_prompt_token_decides(shop: Workshop, name: str, sizes: list[tuple[int, int]]) -> None:
    """Scores taken at ``prompt_len + n_visual - 1``, as a public implementation does, would keep other tokens."""
    which = next(one for one in PRUNED if one.name == name)
    vlm = shop.pipeline(which)
    messages, images = single_turn(len(sizes), 4), pictures(60, sizes)
    ours = vlm.generate(messages, images, max_new_tokens=1)
    text = ours.prompt_tokens - ours.newline_tokens - ours.visual_tokens.stage1
    wrong = text + len(ours.kept_stage1[0]) - 1  # tokens of one image, without newlines
    assert wrong < ours.prompt_tokens - 1
    own, last = (kept_with_query_at(vlm, messages, images, row) for row in (None, ours.prompt_tokens - 1))
    assert own == last
    assert kept_with_query_at(vlm, messages, images, wrong) != own
    config = vlm.manifest.pruning
    theirs = generate(shop.reference(which.spec), messages, images, config, 1)
    assert ours.kept_stage2 == theirs.kept_stage2


def test_cases_cover_the_families() -> None:
    """Both layouts, grouped and full attention, every choice, in every family."""
    for prefix in ("llava", "next", "qwen"):
        specs = [spec for name, spec in CHECKPOINTS.items() if name.startswith(prefix)]
        assert {"5.x", "4.x"} <= {spec.layout for spec in specs}
        assert any(spec.kv_heads == spec.heads for spec in specs) and any(spec.kv_heads < spec.heads for spec in specs)
    assert {len(sizes) for sizes in IMAGE_SETS} == {1, 2, 3}


def test_images_make_a_difference(shop: Workshop, tmp_path: Path) -> None:
    """The checks above have something to see: another second image is another answer."""
    for name in ("llava-b12", "next-vicuna-20pct", "qwen-20pct"):
        which = next(one for one in PRUNED if one.name == name)
        vlm, first = shop.pipeline(which), pictures(70, [SIZES[0]])
        answers = [
            vlm.generate(single_turn(2, 1), [*first, *pictures(71 + index, [SIZES[3]])], max_new_tokens=16, ignore_eos=True)
            for index in range(3)
        ]
        assert len({tuple(answer.token_ids) for answer in answers}) == 3
