"""Bundles of float16, whose steps round otherwise where only one row is computed: answers are the same in any company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sts_export import Pipeline
from sts_export.backends.onnxruntime.backend import least_slots
from sts_export.exporting.exporter import export
from sts_export.exporting.plan import ExportRequest
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.mixed_requests import SQUARE
from tests.support.pipelines import Spy

NEW = 24
WORDS = ["What", "Where", "is", "on", "the", "table", "cat", "picture", "of", "Describe", "text", "larger"]
SIZES: dict[str, Any] = {"width": 256, "mlp": 512, "head_dim": 64, "layers": 6}  # rounding shows in the tokens


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("float16")
    checkpoint = write_random_llava(folder / "checkpoint", RandomLlava(**SIZES))
    capacities: dict[str, Any] = {"max_prompt_tokens": 150, "max_new_tokens": NEW, "max_visual_tokens": 72}
    request = ExportRequest(str(checkpoint), folder / "bundle", budget="8", dtype="float16", **capacities)
    return Pipeline(export(request).folder, threads=1)


def asked(vlm: Pipeline, number: int) -> Any:
    random = np.random.default_rng(number)
    prompt = " ".join(random.choice(WORDS, size=int(random.integers(2, 14))))
    images = [SQUARE] if number % 4 == 0 else []
    sampling = SamplingConfig(temperature=1.0, seed=number) if number % 2 else None
    return vlm.prepare(prompt, images, max_new_tokens=NEW, ignore_eos=True, logprobs=2, sampling=sampling)


@pytest.mark.parametrize("reuse", [False, True])
def test_alone_and_in_company(vlm: Pipeline, reuse: bool) -> None:
    """Tokens and every bit of their log-probabilities; with ``reuse`` the second row is that of a slot that rests."""
    count = 20
    with Scheduler(vlm, slots=4, reuse_prefixes=reuse) as scheduler:
        single = [scheduler.submit(asked(vlm, number)).result for number in range(count)]
    with Scheduler(vlm, slots=4) as scheduler:
        answers = [scheduler.submit(asked(vlm, number)) for number in range(count)]
        for one, answer in zip(single, answers, strict=True):
            if not one.cached_tokens:  # a prompt that goes on behind found rows has fewer rows itself
                assert (answer.result.token_ids, answer.result.logprobs) == (one.token_ids, one.logprobs)
    assert len({tuple(one.token_ids) for one in single}) > count // 2
    assert sum(not one.cached_tokens for one in single) > count // 4


@pytest.mark.parametrize("slots, rows", [(4, 2), (1, 1)])
def test_no_step_has_one_row(vlm: Pipeline, slots: int, rows: int) -> None:
    with Pipeline(vlm.bundle.folder, threads=1) as watched:
        spy = Spy.on(watched)
        with Scheduler(watched, slots=slots) as scheduler:
            assert len(scheduler.submit(asked(watched, 0)).result.token_ids) == NEW
        assert set(spy.batches) == {rows}


def test_only_where_it_matters() -> None:
    assert least_slots("cpu", "float16") == 2
    assert least_slots("cpu", "float32") == least_slots("cuda", "float16") == least_slots("cuda", "bfloat16") == 1
