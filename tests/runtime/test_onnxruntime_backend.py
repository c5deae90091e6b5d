"""Pipeline and ONNX Runtime backend: caches in place, requests side by side, refusals before work, text and stops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from sts_export import Pipeline
from sts_export.bundle import record_file
from sts_export.errors import BackendError, PromptError, RequestError, StsExportError
from sts_export.exporter import ExportRequest, export
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.reference import ReferenceModel, generate
from sts_export.runtime.backend import LowerInputs
from sts_export.runtime.sampling import SamplingConfig
from tests.checkpoints import IMAGE_TOKEN, RandomLlava, random_image, random_prompt, write_random_llava

torch.set_num_threads(1)
KEEP = (12, 4)
TEXT, NEW = 40, 24
LAYERS, PRUNE_LAYER = 4, 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llava(tmp_path_factory.mktemp("backend") / "checkpoint", RandomLlava(layers=LAYERS))


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    return export_to(checkpoint, checkpoint.parent / "bundle")


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> Pipeline:
    return Pipeline(bundle, threads=1)


class Spy:
    """Counts the backend's calls and passes them on."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.calls: list[str] = []
        self.lower_inputs: list[LowerInputs] = []
        self.caches: list[Any] = []
        self.logits: list[np.ndarray[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)

        def call(*args: Any) -> Any:
            self.calls.append(name)
            result = method(*args)
            if name == "lower":
                self.caches.append(args[0])
                self.lower_inputs.append(args[1])
            elif name == "upper":
                self.logits.append(result.copy())
            return result

        return call


@pytest.fixture
def spied(bundle: Path) -> Iterator[tuple[Pipeline, Spy]]:
    """A fresh pipeline whose backend is watched."""
    pipeline = Pipeline(bundle, threads=1)
    spy = Spy(pipeline._backend)
    pipeline._backend = spy  # type: ignore[assignment]
    yield pipeline, spy


def export_to(checkpoint: Path, output: Path, **settings: Any) -> Path:
    defaults = {"keep": KEEP, "prune_layer": PRUNE_LAYER, "max_prompt_tokens": TEXT, "max_new_tokens": NEW}
    return export(ExportRequest(str(checkpoint), output=output, **{**defaults, **settings})).folder


def prompt_of(pipeline: Pipeline, tokens: int, images: int) -> str:
    """A prompt of exactly ``tokens`` text tokens, template included."""
    for letters in range(1, 200):
        prompt = "!" * letters
        if (pipeline.prepare_ids(prompt, images) != VISUAL_ROW).sum() == tokens:
            return prompt
    raise AssertionError(f"no prompt of {tokens} tokens")


# Caches


def pointers(caches: Any) -> dict[str, int]:
    return {
        f"{part}.{name}": buffer.data_ptr()
        for part in ("lower", "upper")
        for name, buffer in getattr(caches, part).buffers.items()
    }


def contents(caches: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A copy of every buffer, [kv_heads, capacity, head_dim]."""
    return {
        f"{part}.{name}": buffer.numpy()[0].copy()
        for part in ("lower", "upper")
        for name, buffer in getattr(caches, part).buffers.items()
    }


def test_caches_are_written_in_place(vlm: Pipeline) -> None:
    """After every call the written rows hold the new keys, all others what they held, and no buffer has moved."""
    backend = vlm._backend
    caches = backend.new_caches()
    before = pointers(caches)
    assert len(before) == len(set(before.values())) == 2 * LAYERS
    for buffers in (caches.lower.buffers, caches.upper.buffers):
        for buffer in buffers.values():  # marks that a write beyond its rows would remove
            marked = np.full(buffer.shape(), 7.0, np.float32)
            buffer.update_inplace(marked)
    _, embeds = backend.select(backend.encode(vlm._processor.pixel_values(random_image(0))))
    ids = vlm.prepare_ids(random_prompt(0), 1)[None]
    length, survivors = ids.shape[1], ids.shape[1] - KEEP[0] + KEEP[1]
    lower = backend.lower(caches, LowerInputs(ids, np.arange(length)[None], 0, embeds))
    backend.upper(caches, lower, np.arange(survivors)[None], 0)
    state = contents(caches)
    for name, buffer in state.items():
        rows = length if name.startswith("lower") else survivors
        assert not (buffer[:, :rows] == 7).all(axis=-1).any(), name
        assert (buffer[:, rows:] == 7).all(), name
    for step in range(3):
        token = np.array([[20 + step]])
        lower = backend.lower(caches, LowerInputs(token, np.array([[length + step]]), length + step))
        backend.upper(caches, lower, np.array([[survivors + step]]), survivors + step)
        after = contents(caches)
        for name, buffer in after.items():
            row = (length if name.startswith("lower") else survivors) + step
            changed = (buffer != state[name]).any(axis=(0, 2))
            assert np.flatnonzero(changed).tolist() == [row], name
        state = after
    assert pointers(caches) == before


def test_no_copy_of_a_cache_is_made(vlm: Pipeline) -> None:
    """Every cache output of a run is the very memory of its input."""
    caches = vlm._backend.new_caches()
    lower = vlm._backend.lower(caches, LowerInputs(np.array([[5, 6]]), np.array([[0, 1]]), 0))
    vlm._backend.upper(caches, lower, np.array([[0, 1]]), 0)
    for part, name in ((caches.lower, "llm_lower"), (caches.upper, "llm_upper")):
        contract = vlm.manifest.graphs[name]
        outputs = part.binding.get_outputs()[: len(contract.caches)]  # bound first
        assert [value.data_ptr() for value in outputs] == [part.buffers[before].data_ptr() for before, _ in contract.caches]


def test_rows_left_from_an_earlier_request_do_not_matter(spied: tuple[Pipeline, Spy]) -> None:
    """Buffers are used again without clearing."""
    pipeline, spy = spied
    fresh = pipeline.generate(random_prompt(1), random_image(1), max_new_tokens=6, ignore_eos=True)
    pipeline.generate(prompt_of(pipeline, TEXT, 1), random_image(2), max_new_tokens=NEW, ignore_eos=True)
    for caches in pipeline._free_caches:
        for buffer in (*caches.lower.buffers.values(), *caches.upper.buffers.values()):
            buffer.update_inplace(np.full(buffer.shape(), 1e4, np.float32))
    again = pipeline.generate(random_prompt(1), random_image(1), max_new_tokens=6, ignore_eos=True)
    assert again.token_ids == fresh.token_ids and again.kept_stage2 == fresh.kept_stage2
    assert spy.calls.count("new_caches") == 1
    assert len({id(caches) for caches in spy.caches}) == 1


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
    assert len(pipeline._free_caches) == 3


def test_abandoned_streams_give_their_buffers_back(spied: tuple[Pipeline, Spy]) -> None:
    pipeline, spy = spied
    expected = pipeline.generate(random_prompt(3), random_image(3), max_new_tokens=8, ignore_eos=True).token_ids
    for _ in range(3):
        stream = pipeline.stream(random_prompt(4), random_image(4), max_new_tokens=NEW, ignore_eos=True)
        next(stream)
        assert not pipeline._free_caches
        stream.close()
        assert len(pipeline._free_caches) == 1
        assert list(stream) == []
        with pytest.raises(RequestError, match="no result"):
            _ = stream.result
    assert pipeline.generate(random_prompt(3), random_image(3), max_new_tokens=8, ignore_eos=True).token_ids == expected
    assert spy.calls.count("new_caches") == 1


def test_buffers_come_back_after_a_failure(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(bundle, threads=1)

    def fail(*_: Any) -> Any:
        raise BackendError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._backend, "upper", fail)
        with pytest.raises(BackendError, match="out of memory"):
            pipeline.generate("What?", random_image(0))
        with pytest.raises(BackendError, match="out of memory"):
            pipeline.score("What?", random_image(0), [5, 6])
    assert len(pipeline._free_caches) == 1
    assert pipeline.generate("What?", random_image(0), max_new_tokens=2, ignore_eos=True).token_ids


# Requests that do not fit


def test_requests_that_do_not_fit_are_refused_before_anything_runs(spied: tuple[Pipeline, Spy]) -> None:
    pipeline, spy = spied
    image = random_image(0)
    capacities = pipeline.manifest.capacities
    cases: list[tuple[type[StsExportError], str, tuple[Any, ...], dict[str, Any]]] = [
        # Without an image there is room where its tokens would be, as far as the upper caches reach.
        (PromptError, "too long", (prompt_of(pipeline, capacities.upper + 1, 0),), {}),
        (RequestError, "do not fit", (prompt_of(pipeline, capacities.upper, 0),), {"max_new_tokens": 2}),
        (PromptError, "too long", (prompt_of(pipeline, TEXT + NEW + 1, 1), image), {}),
        (RequestError, "do not fit", (prompt_of(pipeline, TEXT, 1), image), {"max_new_tokens": NEW + 2}),
        (RequestError, "do not fit", ("What?", image), {"max_new_tokens": capacities.lower}),
        (RequestError, "at least 1", ("What?", image), {"max_new_tokens": 0}),
        (PromptError, "2 images", ("What?", [image, image]), {}),
        (PromptError, "empty", ("", image), {}),
        (RequestError, "stop string", ("What?", image), {"stop": ["x", ""]}),
    ]
    for error, message, args, settings in cases:
        with pytest.raises(error, match=message):
            pipeline.stream(*args, **settings)
        with pytest.raises(error, match=message):
            pipeline.generate(*args, **settings)
    with pytest.raises(RequestError, match="do not fit"):
        pipeline.score("What?", image, [5] * capacities.lower)
    assert spy.calls == []
    assert pipeline._free_caches == []


@pytest.mark.parametrize("images", [0, 1])
def test_a_full_cache_is_used_to_its_last_row(spied: tuple[Pipeline, Spy], checkpoint: Path, images: int) -> None:
    """The longest prompt with as many new tokens as promised, and one more: the last token is written nowhere."""
    pipeline, spy = spied
    text = TEXT if images else TEXT + KEEP[1]
    prompt, sources = prompt_of(pipeline, text, images), [random_image(5)] * images
    result = pipeline.generate(prompt, sources, max_new_tokens=NEW + 1, ignore_eos=True)
    expected = generate(ReferenceModel.open(checkpoint), prompt, sources, pipeline.manifest.pruning, NEW + 1, ignore_eos=True)
    assert result.token_ids == expected.token_ids
    np.testing.assert_allclose(np.stack(spy.logits), expected.logits.numpy(), atol=1e-4, rtol=1e-4)
    capacities = pipeline.manifest.capacities
    upper_cache = spy.caches[-1].upper.buffers[f"key_cache.{PRUNE_LAYER}"].numpy()
    assert (upper_cache[0, :, capacities.upper - 1] != 0).any()
    assert not images or spy.lower_inputs[-1].write_index == capacities.lower - 1
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
    assert "lower" in spy.calls and spy.calls.count("lower") < 8


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
    assert spy.calls.count("lower") == len(result.token_ids)
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
    assert result.prompt_tokens == len(vlm.prepare_ids("What is it?", 1))
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
    ids = vlm.prepare_ids("What is it?", 1)
    assert VISUAL_ROW == -1
    assert (ids == VISUAL_ROW).sum() == KEEP[0] and IMAGE_TOKEN not in ids
    assert (vlm.prepare_ids("What is it?", 0) >= 0).all()


def test_a_generated_image_token_is_a_token_like_any_other(vlm: Pipeline, checkpoint: Path) -> None:
    """Its embedding is the vocabulary's, in every position; it once was taken for a row of visual_embeds."""
    forced = [11, IMAGE_TOKEN, 12, IMAGE_TOKEN, IMAGE_TOKEN, 13]
    prompt, image = random_prompt(7), random_image(7)
    actual = vlm.score(prompt, image, forced)
    expected = generate(
        ReferenceModel.open(checkpoint), prompt, [image], vlm.manifest.pruning, len(forced), forced_tokens=forced
    )
    np.testing.assert_allclose(actual, expected.logits.numpy(), atol=1e-4, rtol=1e-4)
    other = vlm.score(prompt, image, [11, 14, 12, 14, 14, 13])  # the token itself matters
    assert np.abs(actual[2:] - other[2:]).max() > 1e-2


def test_a_model_that_writes_image_tokens(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """generate() feeds one back as its own id and never as a visual row."""
    pipeline = Pipeline(export_to(checkpoint, tmp_path / "bundle"), threads=1)
    spy = Spy(pipeline._backend)
    monkeypatch.setattr(pipeline, "_backend", spy)
    monkeypatch.setattr("sts_export.runtime.pipeline.Sampler.sample", lambda self, logits: IMAGE_TOKEN)
    result = pipeline.generate("What is it?", random_image(0), max_new_tokens=4)
    assert result.token_ids == [IMAGE_TOKEN] * 4
    assert [inputs.input_ids.tolist() for inputs in spy.lower_inputs[1:]] == [[[IMAGE_TOKEN]]] * 3
    assert all(inputs.visual_embeds is None for inputs in spy.lower_inputs[1:])
    expected = generate(
        ReferenceModel.open(checkpoint),
        "What is it?",
        [random_image(0)],
        pipeline.manifest.pruning,
        4,
        forced_tokens=[IMAGE_TOKEN] * 4,
    )
    np.testing.assert_allclose(np.stack(spy.logits), expected.logits.numpy(), atol=1e-4, rtol=1e-4)


# What the engine cannot do


def test_bfloat16_bundle_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_to(checkpoint, tmp_path / "bundle", dtype="bfloat16")
    with pytest.raises(BackendError, match=r"cannot run bfloat16; export again with --dtype float32") as caught:
        Pipeline(bundle)
    assert "\n" not in str(caught.value)


def test_engine_failures_are_one_line(bundle: Path, tmp_path: Path, vlm: Pipeline) -> None:
    """A graph that ONNX Runtime refuses, and a call that it refuses."""
    broken = shutil.copytree(bundle, tmp_path / "broken")
    file = broken / "llm_upper.onnx"
    file.write_bytes(b"no graph")
    manifest = json.loads((broken / "manifest.json").read_text())
    record = record_file(file)
    manifest["graphs"]["llm_upper"].update(size=record.size, sha256=record.sha256)
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BackendError, match="ONNX Runtime failed") as caught:
        Pipeline(broken)
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="ONNX Runtime failed") as caught:
        vlm._backend.encode(np.zeros((1, 3, 5, 5), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(bundle: Path, threads: int) -> None:
    with pytest.raises(RequestError, match="threads must be at least 1"):
        Pipeline(bundle, threads=threads)


def test_number_of_threads_reaches_the_engine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = ort.InferenceSession

    def session(graph: bytes, options: Any, **kwargs: Any) -> Any:
        asked.append(options.intra_op_num_threads)
        return original(graph, options, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", session)
    Pipeline(bundle, threads=2)
    assert asked == [2] * 4
