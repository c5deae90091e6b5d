"""Turns that go on from an earlier turn's cache rows, against plain torch: the reference, and transformers' own generate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sts_export import Pipeline
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.reference import ReferenceModel, generate
from sts_export.testing.checkpoints import RandomLlava, RandomLlavaNext, RandomQwen25VL
from tests.generation.scheduling.chats import alone, token_by_token, turned
from tests.support.mixed_requests import FAMILIES, NEW, QUANTIZED, SQUARE, WIDE, Opened
from tests.support.parity import NEVER, Case, Spec, Transformers, Workshop, pictures, relative_error
from tests.support.pipelines import Spy

torch.set_num_threads(1)
SECOND, THIRD = [40, 77, 12, 90, 301], [66, 5, 200]  # what the user says in later turns
TURN = 4  # tokens of an answer
CLOSE = 1e-4
Asked = tuple[str, Any]
QUESTIONS: dict[str, Asked] = {
    "one": ("What is on the table?", WIDE),
    "two": ("Which is larger?", [SQUARE, WIDE]),
    "text": ("Describe the text.", None),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_choice_of_the_first_turn_stays(opened: Opened, name: str, question: str) -> None:
    """Three turns are the reference's, where stages choose for the first and the rest is appended token by token."""
    prompt, images = QUESTIONS[question]
    vlm = Pipeline(opened(name).bundle.folder, threads=1)
    spy = Spy.on(vlm)
    request = vlm.prepare(prompt, images, max_new_tokens=TURN, ignore_eos=True)
    said, answers, logits = list[int](), [], []
    with Scheduler(vlm, slots=2, reuse_prefixes=True) as scheduler:
        for words in (SECOND, THIRD, []):
            spy.logits.clear()
            answers.append(scheduler.submit(turned(request, said)).result)
            logits.append(np.concatenate(spy.logits))
            said = [*said, *answers[-1].token_ids, *words]
    rows = len(request.input_ids)
    assert [one.cached_tokens for one in answers] == [0, rows + TURN - 1, rows + 2 * TURN + len(SECOND) - 1]
    assert [one.prompt_tokens for one in answers] == [
        rows,
        rows + TURN + len(SECOND),
        rows + 2 * TURN + len(SECOND) + len(THIRD),
    ]

    model = ReferenceModel.open(vlm.manifest.source.folder)
    sources = images if isinstance(images, list) else [] if images is None else [images]
    wanted = generate(model, prompt, sources, vlm.manifest.pruning, len(said), ignore_eos=True, forced_tokens=said)
    starts = [0, TURN + len(SECOND), 2 * TURN + len(SECOND) + len(THIRD)]
    for answer, own, start in zip(answers, logits, starts, strict=True):
        assert answer.token_ids == wanted.choices[start : start + TURN]
        assert relative_error(own, wanted.logits[start : start + TURN]) < CLOSE
        assert (answer.kept_stage1, answer.kept_stage2) == (wanted.kept_stage1, wanted.kept_stage2)
        assert answer.visual_tokens == answers[0].visual_tokens
    assert len({tuple(one.token_ids) for one in answers}) == 3


UNPRUNED: dict[str, Spec] = {
    "llava": RandomLlava(seed=20, kv_heads=4),
    "next": RandomLlavaNext(seed=22, decoder="vicuna", kv_heads=4),
    "next-mistral": RandomLlavaNext(seed=24, decoder="mistral", kv_heads=1),
    "qwen": RandomQwen25VL(seed=25, max_pixels=120 * 784),
}
ROOM = (("max_prompt_tokens", 220), ("max_new_tokens", 20), ("max_visual_tokens", 700), ("method", "none"))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("chats"))


@pytest.mark.parametrize("name", UNPRUNED)
def test_unpruned_chats_are_transformers_own(workshop: Workshop, name: str) -> None:
    """Every turn is what ``generate`` makes of the whole chat."""
    vlm = workshop.pipeline(Case(name, UNPRUNED[name], ROOM))
    theirs = Transformers(workshop.checkpoint(UNPRUNED[name]), UNPRUNED[name])
    images = pictures(5, [(200, 150), (84, 84)])
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare them, cat by cat."}]
    messages = [{"role": "user", "content": content}]
    request = vlm.prepare(messages, images, max_new_tokens=8, ignore_eos=True)
    inputs = theirs.inputs(messages, images)
    image_token = theirs.model.config.image_token_id
    assert inputs["input_ids"][0].tolist() == np.where(request.input_ids == VISUAL_ROW, image_token, request.input_ids).tolist()
    said = list[int]()
    with Scheduler(vlm, slots=1, reuse_prefixes=True) as scheduler:
        for words in (SECOND, THIRD, SECOND):
            answer = scheduler.submit(turned(request, said)).result
            assert answer.token_ids == _of_transformers(theirs, inputs, said)
            assert (answer.cached_tokens > 0) == bool(said)
            said = [*said, *answer.token_ids, *words]


def _of_transformers(theirs: Transformers, inputs: dict[str, Any], said: list[int]) -> list[int]:
    """Eight greedy tokens after a prompt and more ids."""
    more = torch.tensor([said], dtype=torch.int64)
    ids = torch.cat([inputs["input_ids"], more], dim=1)
    longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"]
        longer["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(more, dtype=kinds.dtype)], dim=1)
    made = theirs.model.generate(**longer, max_new_tokens=8, do_sample=False, eos_token_id=NEVER)
    return list(made[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized(opened: Opened, name: str) -> None:
    """A turn is what the same graphs make of its rows one by one."""
    vlm = opened(name)
    first = vlm.prepare("What is on the table?", WIDE, max_new_tokens=TURN, ignore_eos=True)
    (answer,) = alone(vlm, [first])
    second = turned(first, [*answer.token_ids, *SECOND], NEW)
    _, again = alone(vlm, [first, second])
    assert again.cached_tokens == len(first.input_ids) + TURN - 1
    assert again.token_ids == token_by_token(vlm, second, len(first.input_ids))[0]
