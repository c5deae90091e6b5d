"""The TensorRT backend's own work, on imitations: caches, memory, threads, life and death."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sts_export import Pipeline
from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.protocol import LowerInputs
from sts_export.backends.tensorrt import memory as tensorrt_memory
from sts_export.backends.tensorrt.backend import KERNELS
from sts_export.backends.tensorrt.memory import DevicePool, DeviceTensor, Staging
from sts_export.errors import BackendError
from sts_export.testing.checkpoints import random_image, random_prompt
from sts_export.testing.fakes.cuda import CudaImitation
from tests.support.pipelines import KEEP, LAYERS, PRUNE_LAYER, export_to
from tests.support.tensorrt_backend import (
    NEW,
    NEW_TOKENS,
    OLD,
    RTX,
    Flavour,
    Opened,
    check_nothing_left,
    flavour_of,
    open_backend,
    open_on,
    token,
)


def content(device: CudaImitation, tensor: DeviceTensor) -> NDArray[np.float32]:
    device.cudaStreamSynchronize(next(iter(device.streams)))
    return device.view(tensor.address, tensor.nbytes).view(np.float32).reshape(tensor.shape).copy()


def state(opened: Opened, caches: Any) -> dict[str, NDArray[np.float32]]:
    """What each cache holds now."""
    return {
        name: content(opened.device, part.bindings()[name])
        for part in (caches.lower, caches.upper)
        for name in part.bindings()
        if "_out" not in name
    }


def prompt_of(pipeline: Pipeline, batch: int) -> tuple[LowerInputs, int]:
    """A prompt with one image, the same for every request, and its survivors."""
    backend: Any = pipeline._backend
    embeds = []
    for index in range(batch):
        image = pipeline.prepared(random_image(index))
        kept, rows = backend.select(backend.encode(image.encoder_inputs), image.token_order, image.quota(KEEP[0]))
        assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == KEEP[0]
        embeds.append([rows])
    ids = np.repeat(pipeline.prepare_ids(random_prompt(0), [KEEP[0]])[None], batch, axis=0)
    positions = np.repeat(np.arange(ids.shape[1])[None], batch, axis=0)
    inputs = LowerInputs(ids, np.ones_like(ids), positions, np.zeros(batch, np.int64), embeds, KEEP[1])
    return inputs, ids.shape[1] - KEEP[0] + KEEP[1]


# Caches


@pytest.mark.parametrize("batch", [1, 3])
def test_cache_bytes_follow_the_formula(opened: Opened, batch: int) -> None:
    """Each part at its own capacity; two buffers where the engine does not write in place."""
    before = opened.device.live(True)
    caches = opened.backend.new_caches(batch)
    manifest = opened.pipeline().manifest
    decoder, room = manifest.model.decoder, manifest.capacities
    one_row = batch * 2 * decoder.num_kv_heads * decoder.head_dim * 4 * flavour_of(opened).copies
    assert room.rows[0] > room.rows[1]
    assert caches.lower_bytes == one_row * PRUNE_LAYER * room.rows[0]
    assert caches.upper_bytes == one_row * (LAYERS - PRUNE_LAYER) * room.rows[1]
    taken = opened.device.live(True) - before
    padding = 256 * 2 * LAYERS * flavour_of(opened).copies
    assert caches.lower_bytes + caches.upper_bytes <= taken <= caches.lower_bytes + caches.upper_bytes + padding


def test_reported_cache_bytes_are_a_requests_share(opened: Opened, expected: Pipeline) -> None:
    ours = opened.pipeline().generate(["a", "b"], [None, None], max_new_tokens=2, ignore_eos=True)
    theirs = expected.generate("a", None, max_new_tokens=2, ignore_eos=True).kv_cache_bytes
    for result in ours:
        assert result.kv_cache_bytes.lower == theirs.lower * flavour_of(opened).copies
        assert result.kv_cache_bytes.upper == theirs.upper * flavour_of(opened).copies


@pytest.mark.parametrize("batch", [1, 3])
def test_only_the_rows_of_a_call_are_written(opened: Opened, batch: int) -> None:
    """Fresh caches are zero; the prompt fills its rows, and every decode step one row of each request."""
    pipeline = opened.pipeline()
    backend = opened.backend
    caches = backend.new_caches(batch)
    assert all((cache == 0).all() for cache in state(opened, caches).values())
    inputs, survivors = prompt_of(pipeline, batch)
    length = inputs.input_ids.shape[1]
    lower = backend.lower(caches, inputs)
    backend.upper(caches, lower, inputs.position_ids[:, :survivors], np.zeros(batch, np.int64))
    before = state(opened, caches)
    layers = {name: int(name.split(".")[1]) for name in before}
    assert sorted(layers.values()) == sorted([*range(LAYERS)] * 2)
    for name, cache in before.items():
        rows = length if layers[name] < PRUNE_LAYER else survivors
        assert (np.abs(cache[:, :, :rows]).max(axis=(1, 3)) > 0).all() and (cache[:, :, rows:] == 0).all(), name
    for step in range(4):
        lower_row, upper_row = np.arange(batch) + length + step, np.arange(batch) + survivors + step
        backend.decode(caches, token([20 + step] * batch, lower_row, lower_row), upper_row[:, None], upper_row)
        after = state(opened, caches)
        for name, cache in after.items():
            changed = (cache != before[name]).any(axis=(1, 3))
            expected = lower_row if layers[name] < PRUNE_LAYER else upper_row
            assert [np.flatnonzero(row).tolist() for row in changed] == [[row] for row in expected], name
        before = after


@pytest.mark.parametrize("given", [(True, True), (False, False), (True, False)], ids=["reindex", "keep", "both"])
def test_decode_is_lower_then_upper(opened: Opened, given: tuple[bool, bool]) -> None:
    """Eight steps, of which the last ones are replayed graphs, against the two calls on other caches."""
    pipeline, backend = opened.pipeline(), opened.backend
    ours, theirs = backend.new_caches(2), backend.new_caches(2)
    inputs, survivors = prompt_of(pipeline, 2)
    length = inputs.input_ids.shape[1]
    for caches in (ours, theirs):
        lower = backend.lower(caches, inputs)
        backend.upper(caches, lower, inputs.position_ids[:, :survivors], np.zeros(2, np.int64))
    answers = []
    for step in range(8):
        rows, upper = np.array([length, length]) + step, np.array([survivors, survivors]) + step
        feeds, positions = token([11 + step, 31 - step], rows, rows), upper[:, None] if given[step // 2 % 2] else None
        decoded = backend.decode(ours, feeds, positions, upper)
        single = backend.upper(theirs, backend.lower(theirs, feeds), positions, upper)
        np.testing.assert_array_equal(decoded, single)
        answers.append(decoded)
    assert len({answer.tobytes() for answer in answers}) == len(answers)  # and a result is not overwritten by the next
    assert all(step.is_captured for step in ours.steps.values())


def test_dropped_caches_are_freed(opened: Opened) -> None:
    """Without waiting for the garbage collector, graphs and all."""
    before = opened.device.live(True)
    gc.disable()
    try:
        caches = opened.backend.new_caches(2)
        for row in range(5):
            opened.backend.decode(caches, token([5, 6], [row] * 2, [row] * 2), None, np.array([row] * 2))
        assert opened.device.live(True) > before and opened.device.live_graphs() > 0
        del caches
        assert opened.device.live(True) == before and opened.device.live_graphs() == 0
    finally:
        gc.enable()


def test_writes_beyond_the_end_are_refused(opened: Opened) -> None:
    """TensorRT would ignore them."""
    backend, room = opened.backend, opened.pipeline().manifest.capacities
    caches = backend.new_caches(1)
    for lower, upper in ((room.rows[0], 0), (0, room.rows[1]), (-1, 0)):
        with pytest.raises(BackendError, match="do not fit into caches of 1 x"):
            backend.decode(caches, token([5], [lower], [0]), None, np.array([upper]))
    with pytest.raises(BackendError, match="do not fit into caches of 1 x"):
        backend.decode(caches, token([5, 5], [0, 0], [0, 0]), None, np.array([0, 0]))


# Between the engines


def test_the_host_waits_for_kept_tokens_and_logits_only(opened: Opened) -> None:
    pipeline = opened.pipeline()
    request = pipeline._prepare("What are they?", [random_image(1), random_image(2)], max_new_tokens=1)
    caches = opened.backend.new_caches(1)
    before = opened.device.calls.copy()
    pipeline._engine.prefill([request], caches)
    assert (opened.device.calls - before)["cudaStreamSynchronize"] == 2 + 1


def test_one_image_is_not_copied(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    original = Cuda.on_device

    def on_device(self: Cuda, target: int, source: int, nbytes: int) -> None:
        copied.append(nbytes)
        original(self, target, source, nbytes)

    monkeypatch.setattr(Cuda, "on_device", on_device)
    pipeline = opened.pipeline()
    pipeline.generate("What is it?", random_image(1), max_new_tokens=1)
    assert copied == []
    pipeline.generate("What are they?", [random_image(1), random_image(2)], max_new_tokens=1)
    assert copied == [KEEP[0] * pipeline.manifest.model.decoder.hidden_size * 4] * 2


def test_later_requests_take_nothing_new(opened: Opened) -> None:
    """The pool has what the first ones needed."""
    pipeline = opened.pipeline()
    for index in range(2):
        pipeline.generate("What is it?", random_image(index), max_new_tokens=6, ignore_eos=True)
    before = opened.device.calls["cudaMalloc"]
    for index in range(3):
        pipeline.generate("What is it?", random_image(10 + index), max_new_tokens=6, ignore_eos=True)
    assert opened.device.calls["cudaMalloc"] == before


@pytest.mark.parametrize("size", [256, 1024, 70_000])
def test_little_staging_memory_is_enough(folder: Path, expected: Pipeline, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays larger than it go through in pieces, in both directions."""
    monkeypatch.setattr(tensorrt_memory, "_STAGING", size)
    opened = open_on(folder)
    prompt, images = "What are they?", [random_image(3), random_image(4)]
    ours = opened.pipeline().generate(prompt, images, max_new_tokens=6, ignore_eos=True)
    theirs = expected.generate(prompt, images, max_new_tokens=6, ignore_eos=True)
    assert (ours.token_ids, ours.kept_stage1, ours.kept_stage2) == (theirs.token_ids, theirs.kept_stage1, theirs.kept_stage2)
    assert opened.device.problems == []
    opened.backend.close()


def test_streams_side_by_side(opened: Opened, expected: Pipeline) -> None:
    """Each has caches, buffers and graphs of its own; what the prompts share is given from one to the next."""
    requests: list[tuple[str, Any]] = [("What is it?", random_image(1)), ("And this?", random_image(2)), ("Who are you?", None)]
    pipeline = opened.pipeline()
    streams = [pipeline.stream(*request, max_new_tokens=NEW_TOKENS, ignore_eos=True) for request in requests]
    running = list(streams)
    while running:
        running = [stream for stream in running if next(stream, None) is not None]
    for stream, request in zip(streams, requests, strict=True):
        theirs = expected.generate(*request, max_new_tokens=NEW_TOKENS, ignore_eos=True)
        assert stream.result.token_ids == theirs.token_ids and stream.result.kept_stage2 == theirs.kept_stage2


def test_threads_take_turns(opened: Opened, expected: Pipeline) -> None:
    pipeline = opened.pipeline()
    answers: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        answers[index] = pipeline.generate("What?", random_image(index), max_new_tokens=8, ignore_eos=True).token_ids

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        theirs = expected.generate("What?", random_image(index), max_new_tokens=8, ignore_eos=True)
        assert answers[index] == theirs.token_ids


def test_what_stands_for_absent_images_is_zero(opened: Opened) -> None:
    """An engine may multiply it by a mask, and NaN times zero is NaN."""
    assert (content(opened.device, opened.backend._no_embeds) == 0).all()
    caches = opened.backend.new_caches(1)
    opened.backend.decode(caches, token([5], [0], [0]), None, np.array([0]))
    (step,) = caches.steps.values()
    assert (content(opened.device, step._tensors["lower.visual_embeds"]) == 0).all()


# Types


def test_half_precision_engines_get_half_precision_pixels(folder: Path, tmp_path: Path, expected: Pipeline) -> None:
    half = export_to(folder.parent / "checkpoint", tmp_path / "half", dtype="float16")
    opened = open_on(half)
    features = opened.pipeline().features(random_image(1))["visual_features"]
    assert features.dtype == np.float16
    reference = expected.features(random_image(1))["visual_features"]
    assert np.abs(features.astype(np.float32) - reference).max() < 0.02 * np.abs(reference).max()
    ours = opened.pipeline().generate("What is it?", random_image(1), max_new_tokens=4, ignore_eos=True)
    theirs = Pipeline(half, threads=1).generate("What is it?", random_image(1), max_new_tokens=4, ignore_eos=True)
    assert (ours.token_ids, ours.kept_stage1) == (theirs.token_ids, theirs.kept_stage1)


def test_bfloat16_goes_there_and_back(folder: Path) -> None:
    """Rounded as PyTorch rounds; fetched as float32, which numpy knows."""
    cuda = Cuda(CudaImitation())
    staging, tensor = Staging(cuda), DevicePool(cuda).take((3, 100), "bfloat16")
    numbers = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    staging.upload(numbers.astype(tensorrt_memory.numpy_dtype("bfloat16")), tensor.address)
    fetched = staging.download(tensor)
    assert fetched.dtype == np.float32
    np.testing.assert_array_equal(fetched, torch.from_numpy(numbers).bfloat16().float().numpy())


# Life


def test_everything_is_freed_without_close(folder: Path) -> None:
    opened = open_on(folder)
    device, pipeline = opened.device, opened.pipeline()
    pipeline.generate("What is it?", random_image(1), max_new_tokens=4, ignore_eos=True)
    assert device.live(True) > 0 and device.live_graphs() > 0
    del opened, pipeline
    gc.collect()
    check_nothing_left(device)
    assert not device.streams


def test_close(opened: Opened) -> None:
    """Frees what is still held elsewhere, and can be said twice; nothing works afterwards."""
    backend, device = opened.backend, opened.device
    caches = backend.new_caches(1)
    features = backend.encode(opened.pipeline().prepared(random_image(0)).encoder_inputs)
    with backend:
        backend.decode(caches, token([5], [0], [0]), None, np.array([0]))
    backend.close()
    del features
    check_nothing_left(device)
    for call in (lambda: backend.new_caches(1), lambda: backend.decode(caches, token([5], [0], [0]), None, np.array([0]))):
        with pytest.raises(BackendError, match="was closed"):
            call()


@pytest.mark.parametrize("graph", ["vision_encoder", "selector", "llm_lower", "llm_upper"])
def test_a_failure_leaves_a_working_backend(opened: Opened, expected: Pipeline, graph: str) -> None:
    pipeline = opened.pipeline()
    plan = opened.backend._engines[graph]._engine.plan
    before = opened.device.live(True)
    plan["fails"] = "enqueueV3: Error Code 1: Cuda Driver (an odd\nfailure)"
    with pytest.raises(BackendError, match="an odd failure") as caught:
        pipeline.generate("What is it?", random_image(1), max_new_tokens=4, ignore_eos=True)
    assert "\n" not in str(caught.value)
    plan["fails"] = ""
    del caught
    opened.backend._pool.trim()
    gc.collect()
    assert opened.device.live(True) == before  # the caches of the failed request are gone
    ours = pipeline.generate("What is it?", random_image(1), max_new_tokens=4, ignore_eos=True)
    assert ours.token_ids == expected.generate("What is it?", random_image(1), max_new_tokens=4, ignore_eos=True).token_ids


# Kernels that TensorRT for RTX compiled


def test_compiled_kernels_are_kept(folder: Path) -> None:
    opened = open_on(folder, RTX)
    file = opened.engines.folder / KERNELS
    opened.backend.close()
    written = file.read_bytes()
    assert written.startswith(b"kernels") and not list(file.parent.glob(f".{KERNELS}*"))
    again = open_backend(opened.engines, folder, CudaImitation())
    assert again._session.kernels._cache.content.startswith(written)
    file.write_bytes(b"of another GPU")
    other = open_backend(opened.engines, folder, CudaImitation())
    del again, other
    assert file.read_bytes() != b"of another GPU"


def test_a_bundle_that_cannot_be_written_to_keeps_no_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_on(folder, RTX)

    def refuse(self: Path, content: bytes) -> int:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    opened.backend.close()
    assert not (opened.engines.folder / KERNELS).exists()


@pytest.mark.parametrize("flavour", [NEW, OLD], ids=str)
def test_tensorrt_compiles_no_kernels(folder: Path, flavour: Flavour) -> None:
    opened = open_on(folder, flavour)
    opened.backend.close()
    assert not (opened.engines.folder / KERNELS).exists()
