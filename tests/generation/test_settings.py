"""A checkpoint's generation settings, followed end to end: transformers' own generate and the reference are the other side.

The files are written as checkpoints ship them, read by transformers' own reader, and nothing is excused as a near-tie.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from sts_export import Pipeline
from sts_export.errors import RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.measuring.bench import BenchTask, PipelineRunner
from sts_export.reference import ReferenceModel, generate
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.rows import unpruned_ids
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_prompt,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from sts_export.testing.public_models import PUBLIC_MODELS
from sts_export.verification.answers import verify
from tests.support.parity import Messages, Transformers, pictures

torch.set_num_threads(1)
TOKENS = 26
PUBLIC_QWEN = {
    name: value
    for name, value in PUBLIC_MODELS["Qwen/Qwen2.5-VL-7B-Instruct"].generation.items()
    if not name.endswith("_token_id")
}
SPECS: dict[str, Any] = {
    "qwen-0": RandomQwen25VL(seed=50, layers=2),
    "qwen-1": RandomQwen25VL(seed=51, layers=3, tied_embeddings=True),
    "qwen-2": RandomQwen25VL(seed=52, layers=2, layout="4.x"),
    "llava": RandomLlava(seed=53, layers=2, vision_layers=2),
    "llava_next": RandomLlavaNext(seed=54, layers=2, vision_layers=2),
}
QWENS = ("qwen-0", "qwen-1", "qwen-2")
FAMILIES = ("qwen-0", "llava", "llava_next")
IMAGES: list[list[tuple[int, int]]] = [[(84, 84)], [(200, 150)], [(300, 40), (84, 84)], []]
Case = tuple[Messages, list[Image.Image]]


def case(index: int) -> Case:
    """A user turn with pictures of several sizes, with two, or with none."""
    sizes = IMAGES[index % len(IMAGES)]
    content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": random_prompt(index)}]
    return [{"role": "user", "content": content}], pictures(index, sizes)


CASES = [case(index) for index in range(len(IMAGES))]


class Shop:
    """Checkpoints, transformers' models of them and bundles under any generation settings, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint: Callable[[str], Path] = cache(self._checkpoint)
        self.transformers: Callable[[str], Transformers] = cache(lambda name: Transformers(self.checkpoint(name), SPECS[name]))

    def _checkpoint(self, name: str) -> Path:
        spec = SPECS[name]
        if isinstance(spec, RandomQwen25VL):
            return write_random_qwen2_5_vl(self.folder / name, spec)
        write = write_random_llava_next if isinstance(spec, RandomLlavaNext) else write_random_llava
        return write(self.folder / name, spec)

    def with_settings(self, name: str, **settings: Any) -> Path:
        """A copy of the checkpoint whose generation_config.json has these settings, too."""
        number = len(list(self.folder.iterdir()))
        folder = Path(shutil.copytree(self.checkpoint(name), self.folder / f"{name}-{number}"))
        file = folder / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        return folder

    def pipeline(self, checkpoint: Path, budget: str = "100%") -> Pipeline:
        output = checkpoint.with_name(f"{checkpoint.name}-{budget.strip('%')}")
        request = ExportRequest(
            str(checkpoint),
            output,
            budget=budget,
            weights="link",
            max_prompt_tokens=150,
            max_new_tokens=TOKENS,
            max_visual_tokens=700,
        )
        return Pipeline(export(request).folder, threads=1)

    def expected(self, checkpoint: Path, name: str, one: Case, **settings: Any) -> list[int]:
        """What ``generate(do_sample=False)`` answers under the checkpoint's own file."""
        theirs = self.transformers(name)
        theirs.model.generation_config = GenerationConfig.from_pretrained(checkpoint)
        inputs = theirs.inputs(*one)
        out = theirs.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **settings)
        tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("settings"))


OFF = LogitsConfig(
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    sequence_bias=(),
    bad_words_ids=(),
    min_length=0,
    min_new_tokens=0,
    suppress_tokens=(),
    begin_suppress_tokens=(),
)


def check(shop: Shop, name: str, **settings: Any) -> int:
    """Unpruned answers equal transformers' for every case; returns how many the settings changed."""
    checkpoint = shop.with_settings(name, **settings)
    vlm, changed = shop.pipeline(checkpoint), 0
    for one in CASES:
        ours = vlm.generate(*one, max_new_tokens=TOKENS)
        assert ours.token_ids == shop.expected(checkpoint, name, one)
        changed += ours.token_ids != vlm.generate(*one, max_new_tokens=TOKENS, logits=OFF).token_ids
    return changed


# transformers' generate


@pytest.mark.parametrize("name", QWENS)
def test_settings_of_the_public_qwen(shop: Shop, name: str) -> None:
    assert PUBLIC_QWEN["repetition_penalty"] == 1.05 and PUBLIC_QWEN["do_sample"] is True
    check(shop, name, **PUBLIC_QWEN)


def test_the_small_penalty_of_the_public_qwen_is_visible(shop: Shop) -> None:
    """End tokens aside, so that answers are long enough; at least one answer of some checkpoint changes."""
    changed = 0
    for name in QWENS:
        checkpoint = shop.with_settings(name, **PUBLIC_QWEN, suppress_tokens=ends(shop.checkpoint(name)))
        vlm = shop.pipeline(checkpoint)
        for one in CASES:
            ours = vlm.generate(*one, max_new_tokens=TOKENS)
            assert len(ours.token_ids) == TOKENS
            assert ours.token_ids == shop.expected(checkpoint, name, one)
            plain = vlm.generate(*one, max_new_tokens=TOKENS, logits=LogitsConfig(repetition_penalty=1.0))
            changed += ours.token_ids != plain.token_ids
    assert changed


def ends(checkpoint: Path) -> list[int]:
    found = json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"]
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("name", SPECS)
def test_a_strong_penalty_changes_the_answers(shop: Shop, name: str) -> None:
    assert check(shop, name, repetition_penalty=1.3) >= 2


@pytest.mark.parametrize("name", FAMILIES)
def test_ngrams_are_those_of_prompt_and_answer(shop: Shop, name: str) -> None:
    """A penalty below 1 makes answers repeat themselves and the prompt."""
    assert check(shop, name, repetition_penalty=0.6, no_repeat_ngram_size=2) >= 2


@pytest.mark.parametrize("name", FAMILIES)
def test_lists_of_tokens(shop: Shop, name: str) -> None:
    """Tokens of the plain answers are excluded, forbidden or made more likely; ids that no model has are ignored."""
    answers = [shop.expected(shop.checkpoint(name), name, one) for one in CASES]
    first, second = answers[0], answers[1]
    settings = {
        "suppress_tokens": [first[3], 10**6],
        "begin_suppress_tokens": [answer[0] for answer in answers],
        "bad_words_ids": [second[2:4], [second[5]], first[:2]],
        "sequence_bias": [[[first[6]], 6.0], [[second[7], second[8]], -8.0]],
    }
    assert check(shop, name, **settings) == len(CASES)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["min_new_tokens", "min_length"])
def test_an_answer_does_not_end_too_early(shop: Shop, name: str, kind: str) -> None:
    """End tokens that plain answers begin with; the length counts every image token of the unpruned prompt."""
    answers = [shop.expected(shop.checkpoint(name), name, one) for one in CASES]
    prompts = [shop.transformers(name).inputs(*one)["input_ids"].shape[1] for one in CASES]
    early = {"eos_token_id": sorted({answer[1] for answer in answers} | set(ends(shop.checkpoint(name))))}
    least = 7 if kind == "min_new_tokens" else sorted(prompts)[-2] + 7  # the longest prompt needs less
    assert check(shop, name, **early, **{kind: least}) >= 2


def test_settings_of_the_config_where_there_is_no_file(shop: Shop) -> None:
    checkpoint = shop.with_settings("llava")
    settings = json.loads((checkpoint / "generation_config.json").read_text())
    (checkpoint / "generation_config.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"].update(repetition_penalty=1.4)
    (checkpoint / "config.json").write_text(json.dumps(config))
    vlm, theirs = shop.pipeline(checkpoint), shop.transformers("llava")
    # The decoder's settings, by the reader that from_pretrained uses here, and end tokens that do not come into it.
    theirs.model.generation_config = GenerationConfig.from_model_config(config)
    theirs.model.generation_config.eos_token_id = settings["eos_token_id"]
    assert theirs.model.generation_config.repetition_penalty == 1.4
    for messages, images in CASES[:2]:
        inputs = theirs.inputs(messages, images)
        out = theirs.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        ours = vlm.generate(messages, images, max_new_tokens=TOKENS)
        assert ours.token_ids == out[0, inputs["input_ids"].shape[1] :].tolist()


# The request


@pytest.fixture(scope="module")
def strict(shop: Shop) -> Pipeline:
    """A pruned bundle with penalties of its own."""
    return shop.pipeline(shop.with_settings("qwen-0", repetition_penalty=1.3, no_repeat_ngram_size=2), "30%")


def test_a_request_goes_before_the_checkpoint(shop: Shop, strict: Pipeline) -> None:
    plain = shop.pipeline(shop.with_settings("qwen-0"), "30%")
    for one in CASES:
        default, off, own = (
            strict.generate(*one, ignore_eos=True, logits=logits).token_ids
            for logits in (None, OFF, LogitsConfig(repetition_penalty=1.8))
        )
        assert off == plain.generate(*one, ignore_eos=True).token_ids != default
        both = LogitsConfig(repetition_penalty=1.8, no_repeat_ngram_size=2)
        assert own == plain.generate(*one, ignore_eos=True, logits=both).token_ids
        pairs = list(pairwise(default))
        assert len(pairs) == len(set(pairs))


def test_presence_and_frequency_penalties_of_a_request(shop: Shop) -> None:
    """A penalty on every repetition: what was generated often falls behind, and the prompt does not count."""
    vlm = shop.pipeline(shop.with_settings("llava", repetition_penalty=0.5), "50%")
    for one in CASES[:2]:
        plain = vlm.generate(*one, ignore_eos=True).token_ids
        varied = vlm.generate(*one, ignore_eos=True, logits=LogitsConfig(presence_penalty=2.0, frequency_penalty=2.0))
        assert len(set(varied.token_ids)) > len(set(plain))
        assert varied.token_ids[0] == plain[0]


def test_a_batch_is_answered_as_single_requests(strict: Pipeline) -> None:
    prompts, images = [list(column) for column in zip(*(CASES * 2), strict=True)]
    settings: list[dict[str, Any]] = [
        {},
        {"logits": LogitsConfig(frequency_penalty=1.0, logit_bias={5: 2.0})},
        {"sampling": strict.sampling_defaults(temperature=1.2, seed=3)},
    ]
    for chosen in settings:
        single = [strict.generate(*one, ignore_eos=True, **chosen).token_ids for one in CASES]
        together = strict.generate(prompts, images, ignore_eos=True, **chosen)
        assert [result.token_ids for result in together] == single * 2


def test_sampling_as_the_checkpoint_wants_it(shop: Shop) -> None:
    warm = shop.pipeline(shop.with_settings("qwen-0", do_sample=True, temperature=0.9, top_p=0.95, repetition_penalty=1.05))
    assert warm.sampling_defaults(seed=4) == SamplingConfig(0.9, 50, 0.95, 4)
    assert warm.sampling_defaults(temperature=1.5, top_k=0, top_p=1.0, min_p=0.1) == SamplingConfig(1.5, 0, 1.0, min_p=0.1)
    with pytest.raises(RequestError, match="top_p must be"):
        warm.sampling_defaults(top_p=2.0)
    one = CASES[0]
    drawn = [warm.generate(*one, ignore_eos=True, sampling=warm.sampling_defaults(seed=seed)).token_ids for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert warm.generate(*one, ignore_eos=True).token_ids not in drawn  # greedy remains the default
    # The public file's temperature is as good as 0.
    public = shop.pipeline(shop.with_settings("qwen-1", **PUBLIC_QWEN))
    sampled = public.generate(*one, ignore_eos=True, sampling=public.sampling_defaults()).token_ids
    assert sampled == public.generate(*one, ignore_eos=True).token_ids


def test_stop_strings_of_the_checkpoint(shop: Shop) -> None:
    plain = shop.pipeline(shop.with_settings("llava"), "50%")
    text = plain.generate(*CASES[0], max_new_tokens=12, ignore_eos=True).text
    vlm = shop.pipeline(shop.with_settings("llava", stop_strings=[text[4:7]], eos_token_id=10**6), "50%")
    assert vlm.generate(*CASES[0], max_new_tokens=12).text == text[: text.index(text[4:7])]
    assert vlm.generate(*CASES[0], max_new_tokens=12).finish_reason == "stop"
    for settings in ({"stop": ()}, {"ignore_eos": True}, {"stop": ["never to be seen"]}):
        assert vlm.generate(*CASES[0], max_new_tokens=12, **settings).text == text


def test_wrong_requests(strict: Pipeline) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"logits": {"repetition_penalty": 2}}, "logits is a LogitsConfig, not dict"),
        (
            {"logits": LogitsConfig(logit_bias={10**6: 1.0})},
            "logit_bias names token 1000000; the model has token ids from 0 to 383",
        ),
        ({"logits": LogitsConfig(min_new_tokens=9), "max_new_tokens": 8}, "min_new_tokens 9 is more than the 8"),
    ]
    for settings, message in wrong:
        with pytest.raises(RequestError, match=message):
            strict.stream("What?", **settings)


def test_settings_that_leave_no_token(strict: Pipeline) -> None:
    """The error is one line, and buffers are used again."""
    everything = LogitsConfig(suppress_tokens=range(384))
    with pytest.raises(RequestError, match="exclude every token"):
        strict.generate("What?", logits=everything)
    waiting = len(strict._free_caches)
    assert waiting
    strict.generate("What?", max_new_tokens=2)
    assert len(strict._free_caches) == waiting


def test_the_checkpoints_length_of_an_answer(shop: Shop) -> None:
    """Where a request does not say: transformers' generate without max_new_tokens is the other side."""
    checkpoint = shop.with_settings("llava", max_new_tokens=7, suppress_tokens=ends(shop.checkpoint("llava")))
    vlm, theirs = shop.pipeline(checkpoint), shop.transformers("llava")
    theirs.model.generation_config = GenerationConfig.from_pretrained(checkpoint)
    inputs = theirs.inputs(*CASES[0])
    out = theirs.model.generate(**inputs, do_sample=False)
    assert vlm.generate(*CASES[0]).token_ids == out[0, inputs["input_ids"].shape[1] :].tolist()
    assert [len(vlm.generate(*CASES[0], max_new_tokens=most).token_ids) for most in (None, 3, 12)] == [7, 3, 12]


# The prompt before pruning


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("budget", ["100%", "30%"])
def test_unpruned_ids_are_those_of_transformers_processors(shop: Shop, name: str, budget: str) -> None:
    vlm, theirs = shop.pipeline(shop.with_settings(name), budget), shop.transformers(name)
    for one in CASES:
        request = vlm.prepare(*one)
        ids = unpruned_ids(request.input_ids, request.images, request.rows, vlm.manifest.model.image_token_id)
        assert ids.tolist() == theirs.inputs(*one)["input_ids"][0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_prompt_is_the_prompt_it_stands_for(shop: Shop, name: str) -> None:
    """The reference, whose processors see the whole prompt; lengths and n-grams would differ in the pruned one."""
    answers = [shop.expected(shop.checkpoint(name), name, one) for one in CASES]
    length = int(np.median([shop.transformers(name).inputs(*one)["input_ids"].shape[1] for one in CASES])) + 5
    settings = {
        "repetition_penalty": 0.8,
        "no_repeat_ngram_size": 2,
        "min_length": length,
        "eos_token_id": sorted({token for answer in answers for token in answer[:6]} | set(ends(shop.checkpoint(name)))),
    }
    checkpoint = shop.with_settings(name, **settings)
    vlm, model = shop.pipeline(checkpoint, "30%"), ReferenceModel.open(checkpoint)
    lengths, changed = set(), 0
    for messages, images in CASES:
        for ignore_eos in (False, True):
            ours = vlm.generate(messages, images, max_new_tokens=TOKENS, ignore_eos=ignore_eos)
            theirs = generate(model, messages, images, vlm.manifest.pruning, TOKENS, ignore_eos=ignore_eos)
            assert (ours.token_ids, ours.finish_reason) == (theirs.token_ids, theirs.finish_reason)
            lengths.add(len(ours.token_ids))
            plain = vlm.generate(messages, images, max_new_tokens=TOKENS, ignore_eos=ignore_eos, logits=OFF)
            changed += plain.token_ids != ours.token_ids
    assert len(lengths) > 2 and changed > 2


# The commands


def test_verify_follows_the_checkpoint(shop: Shop, strict: Pipeline) -> None:
    report = verify(strict.bundle.folder, pairs=2, max_new_tokens=12)
    assert report.passed and report.same_choice == 1.0 and all(pair.tokens_equal for pair in report.pairs)
    # A bundle that forgot its settings answers otherwise, and verify says so.
    forgetful = Pipeline(strict.bundle.folder, threads=1)
    answer = forgetful.generate(*CASES[0], max_new_tokens=12, ignore_eos=True, logits=OFF)
    model = ReferenceModel.open(Path(strict.manifest.source.folder))
    theirs = generate(model, *CASES[0], strict.manifest.pruning, 12, ignore_eos=True, forced_tokens=answer.token_ids)
    assert theirs.token_ids == answer.token_ids != theirs.choices


def test_bench_generates_as_many_tokens_as_it_was_told(shop: Shop) -> None:
    """End tokens at once, and a stop string of the checkpoint's, do not end it."""
    plain = shop.pipeline(shop.with_settings("llava"), "50%")
    letters = sorted(set(plain.generate("Describe it.", max_new_tokens=12, ignore_eos=True).text))
    settings = {"eos_token_id": list(range(384)), "min_new_tokens": 2, "stop_strings": letters}
    folder = shop.pipeline(shop.with_settings("llava", **settings), "50%").bundle.folder
    runner = PipelineRunner(str(folder), BenchTask(None, "Describe it.", 6, 1, threads=1))
    assert runner.run()["decode_ms_per_token"] > 0
