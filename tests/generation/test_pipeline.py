"""Pipeline: requests side by side, refusals before work, text and stops, the image token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sts_export import Pipeline
from sts_export.errors import BackendError, PromptError, RequestError, StsExportError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.decoder.parts import LAST
from sts_export.reference import ReferenceModel, generate
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.checkpoints import IMAGE_TOKEN, RandomQwen25VL, random_image, random_prompt, write_random_qwen2_5_vl
from tests.support.parity import TOLERANCE, relative_error
from tests.support.pipelines import KEEP, NEW, PRUNE_LAYER, TEXT, Spy, export_to, prompt_of


def free_caches(pipeline: Pipeline) -> int:
    """Buffers of requests that wait for the next one."""
    return len(pipeline._free_caches)


def test_rows_left_from_an_earlier_request_do_not_matter(spied: tuple[Pipeline, Spy]) -> None:
    """Buffers are used again without clearing."""
    pipeline, spy = spied
    fresh = pipeline.generate(random_prompt(1), random_image(1), max_new_tokens=6, ignore_eos=True)
    pipeline.generate(prompt_of(pipeline, TEXT, 1), random_image(2), max_new_tokens=NEW, ignore_eos=True)
    caches = pipeline._free_caches.take(1)
    for part in caches.parts.values():
        for buffer in part.buffers.values():
            buffer.update_inplace(np.full(buffer.shape(), 1e4, np.float32))
    pipeline._free_caches.give(1, caches)
    again = pipeline.generate(random_prompt(1), random_image(1), max_new_tokens=6, ignore_eos=True)
    assert again.token_ids == fresh.token_ids and again.kept_stage2 == fresh.kept_stage2
    assert spy.calls.count("new_caches") == 1
    assert len({id(call.caches) for call in spy.decoder}) == 1


# Requests side by side


def test_interleaved_streams_do_not_disturb_each_other(spied: tuple[Pipeline, Spy]) -> None:
    pipeline, spy = spied
    requests = [
        (random_prompt(1), [random_image(1)]),
        (random_prompt(2), [random_image(2)]),
        ("What is on the table?", []),
    ]
    alone = [pipeline.generate(*request, max_new_tokens=NEW, ignore_eos=True) for request in requests]
    assert len({tuple(result.token_ids) for result in alone}) == 3
    streams = [pipeline.stream(*request, max_new_tokens=NEW, ignore_eos=True) for request in requests]
    pieces: list[list[str]] = [[] for _ in streams]
    running = list(range(len(streams)))
    while running:
        for index in list(running):
            piece = next(streams[index], None)
            if piece is None:
                running.remove(index)
            else:
                pieces[index].append(piece)
    for stream, parts, result in zip(streams, pieces, alone, strict=True):
        assert stream.result.token_ids == result.token_ids
        assert stream.result.kept_stage1 == result.kept_stage1 and stream.result.kept_stage2 == result.kept_stage2
        assert "".join(parts) == stream.result.text == result.text
    assert spy.calls.count("new_caches") == 3  # three at once, all given back
    assert free_caches(pipeline) == 3


def test_abandoned_streams_give_their_buffers_back(spied: tuple[Pipeline, Spy]) -> None:
    pipeline, spy = spied
    expected = pipeline.generate(random_prompt(3), random_image(3), max_new_tokens=8, ignore_eos=True).token_ids
    for _ in range(3):
        stream = pipeline.stream(random_prompt(4), random_image(4), max_new_tokens=NEW, ignore_eos=True)
        next(stream)
        assert free_caches(pipeline) == 0
        stream.close()
        assert free_caches(pipeline) == 1
        assert list(stream) == []
        with pytest.raises(RequestError, match="no result"):
            _ = stream.result
    assert pipeline.generate(random_prompt(3), random_image(3), max_new_tokens=8, ignore_eos=True).token_ids == expected
    assert spy.calls.count("new_caches") == 1


@pytest.mark.parametrize("call", ["generate", "score"])
def test_buffers_of_a_failure_are_not_used_again(bundle: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """They may hold NaN, which would reach the next request through its masked columns."""
    pipeline = Pipeline(bundle, threads=1)

    run = pipeline._backend.run

    def fail(graph: str, *args: Any, **options: Any) -> Any:
        if graph == LAST:
            raise BackendError("out of memory")
        return run(graph, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._backend, "run", fail)
        with pytest.raises(BackendError, match="out of memory"):
            if call == "score":
                pipeline.score("What?", random_image(0), [5, 6])
            else:
                pipeline.generate("What?", random_image(0))
    assert free_caches(pipeline) == 0
    assert pipeline.generate("What?", random_image(0), max_new_tokens=2, ignore_eos=True).token_ids
    assert free_caches(pipeline) == 1


# Requests that do not fit


def test_requests_that_do_not_fit_are_refused_before_anything_runs(spied: tuple[Pipeline, Spy]) -> None:
    pipeline, spy = spied
    image = random_image(0)
    capacities = pipeline.manifest.capacities
    cases: list[tuple[type[StsExportError], str, tuple[Any, ...], dict[str, Any]]] = [
        # Without an image there is room where its tokens would be, as far as the upper caches reach.
        (PromptError, "too long", (prompt_of(pipeline, capacities.rows[1] + 1, 0),), {}),
        (RequestError, "do not fit", (prompt_of(pipeline, capacities.rows[1], 0),), {"max_new_tokens": 2}),
        (PromptError, "too long", (prompt_of(pipeline, TEXT + NEW + 1, 1), image), {}),
        (RequestError, "do not fit", (prompt_of(pipeline, TEXT, 1), image), {"max_new_tokens": NEW + 2}),
        (RequestError, "do not fit", ("What?", image), {"max_new_tokens": capacities.rows[0]}),
        (RequestError, "at least 1", ("What?", image), {"max_new_tokens": 0}),
        (PromptError, r"6 image\(s\) of 216 visual tokens.*--max-visual-tokens 216$", ("What?", [image] * 6), {}),
        (PromptError, "empty", ("", image), {}),
        (RequestError, "stop string", ("What?", image), {"stop": ["x", ""]}),
    ]
    for error, message, args, settings in cases:
        with pytest.raises(error, match=message):
            pipeline.stream(*args, **settings)
        with pytest.raises(error, match=message):
            pipeline.generate(*args, **settings)
    with pytest.raises(RequestError, match="do not fit"):
        pipeline.score("What?", image, [5] * capacities.rows[0])
    assert spy.calls == []
    assert free_caches(pipeline) == 0


@pytest.mark.parametrize("images", [0, 1])
def test_a_full_cache_is_used_to_its_last_row(spied: tuple[Pipeline, Spy], checkpoint: Path, images: int) -> None:
    """The longest prompt with as many new tokens as promised, and one more: the last token is written nowhere."""
    pipeline, spy = spied
    text = TEXT if images else TEXT + KEEP[1]
    prompt, sources = prompt_of(pipeline, text, images), [random_image(5)] * images
    result = pipeline.generate(prompt, sources, max_new_tokens=NEW + 1, ignore_eos=True)
    expected = generate(ReferenceModel.open(checkpoint), prompt, sources, pipeline.manifest.pruning, NEW + 1, ignore_eos=True)
    assert result.token_ids == expected.token_ids
    assert relative_error(np.concatenate(spy.logits), expected.logits) < TOLERANCE
    capacities = pipeline.manifest.capacities
    upper_cache = spy.decoder[-1].caches.parts[LAST].buffers[f"key_cache.{PRUNE_LAYER}"].numpy()
    assert (upper_cache[0, :, capacities.rows[1] - 1] != 0).any()
    assert not images or spy.decoder[-1].inputs["write_index"].tolist() == [capacities.rows[0] - 1]
    # Without a number it takes what fits, up to the promise.
    assert len(pipeline.generate(prompt, sources, ignore_eos=True).token_ids) == NEW


# Text


def test_pieces_joined_are_the_text(vlm: Pipeline) -> None:
    for index in range(4):
        stream = vlm.stream(random_prompt(index), random_image(index), max_new_tokens=NEW, ignore_eos=True)
        pieces = list(stream)
        result = vlm.generate(random_prompt(index), random_image(index), max_new_tokens=NEW, ignore_eos=True)
        assert len(pieces) > 3 and all(pieces)
        assert "".join(pieces) == result.text == stream.result.text == vlm.tokenizer.decode(result.token_ids)
        assert stream.result.finish_reason == result.finish_reason == "length"


def test_a_stream_runs_only_when_it_is_read(spied: tuple[Pipeline, Spy]) -> None:
    pipeline, spy = spied
    stream = pipeline.stream("What is it?", random_image(0), max_new_tokens=8, ignore_eos=True)
    assert spy.calls == []
    with pytest.raises(RequestError, match="no result"):
        _ = stream.result
    next(stream)
    assert 0 < spy.decoder_runs < 8


def test_stop_strings(spied: tuple[Pipeline, Spy]) -> None:
    """The text ends before the stop string, and no more tokens are computed."""
    pipeline, spy = spied
    prompt, image = random_prompt(6), random_image(6)
    whole = pipeline.generate(prompt, image, max_new_tokens=NEW, ignore_eos=True)
    clean = [
        start for start in range(3, len(whole.text) - 4) if "\N{REPLACEMENT CHARACTER}" not in whole.text[start : start + 2]
    ]
    start = next(start for start in clean if whole.text.find(whole.text[start : start + 2]) == start)
    stop = whole.text[start : start + 2]
    spy.calls.clear()
    stream = pipeline.stream(prompt, image, max_new_tokens=NEW, ignore_eos=True, stop=["never to be seen", stop])
    assert "".join(stream) == stream.result.text == whole.text[:start]
    result = stream.result
    assert result.finish_reason == "stop"
    assert result.token_ids == whole.token_ids[: len(result.token_ids)] and len(result.token_ids) < NEW
    assert stop in pipeline.tokenizer.decode(result.token_ids)
    assert stop not in pipeline.tokenizer.decode(result.token_ids[:-1])
    assert spy.decoder_runs == len(result.token_ids)
    unmet = pipeline.generate(prompt, image, max_new_tokens=NEW, ignore_eos=True, stop=["never to be seen"])
    assert (unmet.text, unmet.finish_reason) == (whole.text, "length")


def test_seeds(vlm: Pipeline) -> None:
    def sample(seed: int, **settings: Any) -> list[int]:
        sampling = SamplingConfig(temperature=1.5, seed=seed, **settings)
        return vlm.generate("What is it?", random_image(0), max_new_tokens=12, sampling=sampling, ignore_eos=True).token_ids

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(4)}) == 4
    greedy = vlm.generate("What is it?", random_image(0), max_new_tokens=12, ignore_eos=True).token_ids
    assert sample(1) != greedy
    assert sample(1, top_k=1) == greedy


def test_the_result_describes_the_run(vlm: Pipeline) -> None:
    result = vlm.generate("What is it?", random_image(0), max_new_tokens=5, ignore_eos=True)
    assert (result.visual_tokens.total, result.visual_tokens.stage1, result.visual_tokens.stage2) == (36, *KEEP)
    assert result.prompt_tokens == len(vlm.prepare_ids("What is it?", [KEEP[0]]))
    assert result.kept_stage1[0] == sorted(set(result.kept_stage1[0])) and len(result.kept_stage1[0]) == KEEP[0]
    assert set(result.kept_stage2) < set(result.kept_stage1[0]) and result.kept_stage2 == sorted(result.kept_stage2)
    times = result.timings_ms
    stages = (times.preprocess, times.vision, times.select, times.prefill_lower, times.prefill_upper)
    assert all(value > 0 for value in stages) and sum(stages) <= times.first_token
    assert times.decode_per_token is not None and times.decode_per_token > 0
    assert vlm.generate("What is it?", random_image(0), max_new_tokens=1).timings_ms.decode_per_token is None
    assert json.loads(json.dumps(result.to_json()))["kept_stage2"] == result.kept_stage2


# The image token


def test_visual_rows_are_marked_by_minus_one(vlm: Pipeline) -> None:
    ids = vlm.prepare_ids("What is it?", [KEEP[0]])
    assert VISUAL_ROW == -1
    assert (ids == VISUAL_ROW).sum() == KEEP[0] and IMAGE_TOKEN not in ids
    assert (vlm.prepare_ids("What is it?", []) >= 0).all()


def test_a_generated_image_token_is_a_token_like_any_other(vlm: Pipeline, checkpoint: Path) -> None:
    """Its embedding is the vocabulary's, in every position; it once was taken for a row of visual_embeds."""
    forced = [11, IMAGE_TOKEN, 12, IMAGE_TOKEN, IMAGE_TOKEN, 13]
    prompt, image = random_prompt(7), random_image(7)
    actual = vlm.score(prompt, image, forced)
    expected = generate(
        ReferenceModel.open(checkpoint), prompt, [image], vlm.manifest.pruning, len(forced), forced_tokens=forced
    )
    assert relative_error(actual, expected.logits) < TOLERANCE
    other = vlm.score(prompt, image, [11, 14, 12, 14, 14, 13])  # the token itself matters
    assert np.abs(actual[2:] - other[2:]).max() > 1e-2


def test_a_model_that_writes_image_tokens(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """generate() feeds one back as its own id and never as a visual row."""
    pipeline = Pipeline(export_to(checkpoint, tmp_path / "bundle"), threads=1)
    spy = Spy.on(pipeline)
    monkeypatch.setattr("sts_export.generation.sampling.Sampler.sample", lambda self, logits: IMAGE_TOKEN)
    result = pipeline.generate("What is it?", random_image(0), max_new_tokens=4)
    assert result.token_ids == [IMAGE_TOKEN] * 4
    assert [call.inputs["input_ids"].tolist() for call in spy.decoder[1:]] == [[[IMAGE_TOKEN]]] * 3
    assert ["visual_embeds" in call.inputs for call in spy.decoder] == [True, False, False, False]
    expected = generate(
        ReferenceModel.open(checkpoint),
        "What is it?",
        [random_image(0)],
        pipeline.manifest.pruning,
        4,
        forced_tokens=[IMAGE_TOKEN] * 4,
    )
    assert relative_error(np.concatenate(spy.logits), expected.logits) < TOLERANCE


# Pictures of several sizes


@pytest.mark.parametrize(("size", "tokens"), [((364, 364), 169), ((392, 392), 196)])
def test_a_smaller_picture_may_lose_tokens_where_the_largest_keeps_all(
    tmp_path: Path, size: tuple[int, int], tokens: int
) -> None:
    """Rounding: 66.4 % leave stage 1 all of 200 tokens, and all but one of 169; stage 1 has to choose which."""
    source = write_random_qwen2_5_vl(tmp_path / "qwen", RandomQwen25VL(min_pixels=4 * 784, max_pixels=200 * 784))
    bundle = export(ExportRequest(str(source), tmp_path / "bundle", budget="66.4%", max_prompt_tokens=80, max_new_tokens=4))
    pruning, picture = bundle.manifest.pruning, random_image(5, size)
    assert pruning.keep_stage1 == pruning.num_visual_tokens == 200
    actual = Pipeline(bundle.folder, threads=1).generate("What?", picture, max_new_tokens=3, ignore_eos=True)
    expected = generate(ReferenceModel.open(source), "What?", [picture], pruning, 3, ignore_eos=True)
    assert actual.visual_tokens.total == tokens and actual.visual_tokens.stage1 == pruning.keeps(tokens)[0]
    assert actual.kept_stage1 == expected.kept_stage1 and actual.kept_stage2 == expected.kept_stage2
    assert actual.token_ids == expected.token_ids


# Wrong kinds of settings


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": "5"},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"stop": 5},
        {"sampling": {"temperature": 1}},
        {"sampling": "greedy"},
    ],
    ids=str,
)
def test_wrong_kinds_are_refused_in_one_line(spied: tuple[Pipeline, Spy], settings: dict[str, Any]) -> None:
    pipeline, spy = spied
    with pytest.raises(RequestError) as caught:
        pipeline.stream("What?", **settings)
    assert "\n" not in str(caught.value) and spy.calls == []


def test_text_that_is_no_text(spied: tuple[Pipeline, Spy]) -> None:
    with pytest.raises(PromptError, match="lone surrogates"):
        spied[0].generate("What \ud800?")


@pytest.mark.parametrize("token", [-1, 10**6])
def test_scored_tokens_exist(spied: tuple[Pipeline, Spy], token: int) -> None:
    with pytest.raises(RequestError, match="token ids must be between 0 and"):
        spied[0].score("What?", random_image(0), [5, token])


# A tokenizer that knows more tokens than the model


@pytest.fixture
def with_more_tokens(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Pipeline, Spy, int]:
    """A pipeline whose tokenizer has two added tokens, the last of the vocabulary and the first beyond it."""
    pipeline = Pipeline(bundle, threads=1)
    vocabulary = pipeline.manifest.model.decoder.vocab_size
    tokenizer = pipeline.tokenizer._tokenizer
    filling = [f"<fill{index}>" for index in range(len(tokenizer), vocabulary - 1)]
    tokenizer.add_tokens([*filling, "<last>", "<beyond>"])
    assert tokenizer.convert_tokens_to_ids(["<last>", "<beyond>"]) == [vocabulary - 1, vocabulary]
    return pipeline, Spy.on(pipeline), vocabulary


def test_a_token_beyond_the_vocabulary_is_refused(with_more_tokens: tuple[Pipeline, Spy, int]) -> None:
    """Before any engine sees it, which would read past the end of its embedding."""
    pipeline, spy, vocabulary = with_more_tokens
    said = (
        f"^the prompt has '<beyond>', token {vocabulary} of the tokenizer, and the model's vocabulary has {vocabulary}, "
        f"0 to {vocabulary - 1}; leave it out, or export with the tokenizer of this model$"
    )
    messages = [{"role": "user", "content": "What is <beyond> and <image>?"}]
    image = random_image(0)
    calls: list[Any] = [
        lambda: pipeline.generate("What is <beyond>?", image),
        lambda: pipeline.stream(messages),
        lambda: pipeline.generate(["What?", "Where is <beyond>?"], [image, image]),
        lambda: pipeline.score("What is <beyond>?", image, [5]),
        lambda: pipeline.prepare_ids("<beyond>?", []),
        lambda: pipeline.generate(pipeline.tokenizer.with_system("<beyond>", "What?", 0)),
    ]
    for call in calls:
        with pytest.raises(PromptError, match=said):
            call()
    assert spy.calls == []
    # The last token of the vocabulary is one of the model's.
    ids = pipeline.prepare_ids("What is <last>?", [])
    assert (ids == vocabulary - 1).sum() == 1 and ids.min() >= 0
    assert pipeline.generate("What is <last>?", image, max_new_tokens=2, ignore_eos=True).token_ids


def test_a_closed_pipeline_gave_back_its_sessions(bundle: Path) -> None:
    with Pipeline(bundle, threads=1) as pipeline:
        pipeline.generate("Hello", max_new_tokens=2)
    assert not pipeline._backend._sessions and not pipeline._free_caches  # type: ignore[attr-defined]
