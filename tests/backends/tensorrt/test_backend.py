"""The TensorRT backend's own work, on fakes: caches, memory, threads, life and death."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sts_export import Pipeline
from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.tensorrt import memory as tensorrt_memory
from sts_export.backends.tensorrt.backend import KERNELS
from sts_export.backends.tensorrt.caches import TensorRtCaches
from sts_export.backends.tensorrt.memory import DevicePool, DeviceTensor, Staging
from sts_export.bundle.manifest import open_bundle
from sts_export.dtypes import numpy_dtype
from sts_export.errors import BackendError
from sts_export.requests.preprocessor import Inputs
from sts_export.testing.checkpoints import random_image
from sts_export.testing.fakes.cuda import FakeCuda
from tests.support.pipelines import KEEP, LAYERS, PRUNE_LAYER, export_to
from tests.support.slots import Slots
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
    token_feeds,
)


def content(device: FakeCuda, tensor: DeviceTensor) -> NDArray[np.float32]:
    device.cudaStreamSynchronize(next(iter(device.streams)))
    return device.view(tensor.address, tensor.nbytes).view(np.float32).reshape(tensor.shape).copy()


def state(opened: Opened, caches: TensorRtCaches) -> dict[str, NDArray[np.float32]]:
    """What each cache holds now, all slots."""
    return {
        name: content(opened.device, tensor)
        for part in caches.parts.values()
        for name, tensor in part.step_bindings(caches.slots).items()
        if "_out" not in name
    }


def filled(opened: Opened, slots: int) -> tuple[Slots, list[Inputs]]:
    """Slots with a request each: pictures of their own, and prompts of several lengths."""
    running = Slots(opened.backend, open_bundle(opened.folder), slots)
    inputs = [running.inputs("What is it?" + "!" * slot, [random_image(slot)]) for slot in range(slots)]
    for slot, one in enumerate(inputs):
        running.add(slot, one)
    return running, inputs


# Caches


@pytest.mark.parametrize("slots", [1, 3])
def test_cache_bytes_follow_the_formula(opened: Opened, slots: int) -> None:
    """Each part at its own capacity; two buffers where the engine does not write in place."""
    before = opened.device.live(True)
    caches = opened.backend.new_caches(slots)
    manifest = open_bundle(opened.folder).manifest
    decoder, rows = manifest.model.decoder, [part.capacity for part in caches.parts.values()]
    one_row = slots * 2 * decoder.num_kv_heads * decoder.head_dim * 4 * flavour_of(opened).copies
    assert rows[0] > rows[1]
    assert caches.bytes_of("llm_lower") == one_row * PRUNE_LAYER * rows[0]
    assert caches.bytes_of("llm_upper") == one_row * (LAYERS - PRUNE_LAYER) * rows[1]
    taken = opened.device.live(True) - before
    counted = caches.bytes_of("llm_lower") + caches.bytes_of("llm_upper")
    padding = 256 * 2 * LAYERS * flavour_of(opened).copies
    assert counted <= taken <= counted + padding


def test_reported_cache_bytes_are_a_requests_share(opened: Opened, expected: Pipeline) -> None:
    ours = opened.pipeline().generate(["a", "b"], [None, None], max_new_tokens=2, ignore_eos=True)
    theirs = expected.generate("a", None, max_new_tokens=2, ignore_eos=True).kv_cache_bytes
    for result in ours:
        assert result.kv_cache_bytes.lower == theirs.lower * flavour_of(opened).copies
        assert result.kv_cache_bytes.upper == theirs.upper * flavour_of(opened).copies


@pytest.mark.parametrize("slots", [1, 3])
def test_only_the_rows_of_a_call_are_written(opened: Opened, slots: int) -> None:
    """Fresh caches are zero; a prompt fills its rows of its slot, and every decode step one row of each slot."""
    running = Slots(opened.backend, open_bundle(opened.folder), slots)
    before = state(opened, running.caches)
    layers = {name: int(name.split(".")[1]) for name in before}
    assert sorted(layers.values()) == sorted([*range(LAYERS)] * 2)
    assert all((cache == 0).all() for cache in before.values())
    for slot in reversed(range(slots)):
        one = running.add(slot, running.inputs("What is it?" + "!" * slot, [random_image(slot)]))
        after = state(opened, running.caches)
        for name, cache in after.items():
            end = one.rows[layers[name] >= PRUNE_LAYER]
            assert (np.abs(cache[slot, :, :end]).max(axis=(0, 2)) > 0).all() and (cache[slot, :, end:] == 0).all(), name
            others = [other for other in range(slots) if other != slot]
            assert (cache[others] == before[name][others]).all(), name
        before = after
    for _ in range(4):
        rows = {slot: one.rows for slot, one in running.running.items()}
        running.step()
        after = state(opened, running.caches)
        for name, cache in after.items():
            changed = (cache != before[name]).any(axis=(1, 3))
            expected = [[rows[slot][layers[name] >= PRUNE_LAYER]] for slot in range(slots)]
            assert [np.flatnonzero(row).tolist() for row in changed] == expected, name
        before = after


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("fed", [(True, True), (False, False), (True, False)], ids=["reindex", "keep", "both"])
def test_a_step_is_a_call_of_every_part_on_every_slot(opened: Opened, fed: tuple[bool, bool], slots: int) -> None:
    """Eight steps, of which the last ones are replayed graphs, against single calls on other caches, in the prefill profile."""
    (ours, inputs), backend = filled(opened, slots), opened.backend
    theirs = Slots(backend, open_bundle(opened.folder), slots)
    for slot, one in enumerate(inputs):
        theirs.add(slot, one)
    answers = []
    for step in range(8):
        lower, upper = ([one.rows[part] + step for one in ours.running.values()] for part in range(2))
        feeds = token_feeds([11 + step, 31 - step][:slots], lower, upper, positions_fed=fed[step // 2 % 2])
        decoded = backend.decode(ours.caches, feeds)
        for slot in range(slots):
            single = {
                part: {name: array[slot : slot + 1] if name != "stage2_slots" else array for name, array in given.items()}
                for part, given in feeds.items()
            }
            lower_outputs = backend.run("llm_lower", single["llm_lower"], caches=theirs.caches, slot=slot)
            passed = {"position_ids": lower_outputs["kept_position_ids"], **lower_outputs, **single["llm_upper"]}
            logits = backend.run("llm_upper", passed, caches=theirs.caches, slot=slot, fetch=("logits",))["logits"]
            # ONNX Runtime, which stands for the engine, may add in another order in a larger batch.
            np.testing.assert_allclose(decoded[slot], logits[0], rtol=0, atol=0 if slots == 1 else 1e-4)
        answers.append(decoded)
    assert len({answer.tobytes() for answer in answers}) == len(answers)  # and a result is not overwritten by the next
    assert all(step.is_captured for step in ours.caches.steps.values())


def test_dropped_caches_are_freed(opened: Opened) -> None:
    """Without waiting for the garbage collector, graphs and all."""
    before = opened.device.live(True)
    gc.disable()
    try:
        caches = opened.backend.new_caches(2)
        for row in range(5):
            opened.backend.decode(caches, token_feeds([5, 6], [row] * 2, [row] * 2))
        assert opened.device.live(True) > before and opened.device.live_graphs() > 0
        del caches
        assert opened.device.live(True) == before and opened.device.live_graphs() == 0
    finally:
        gc.enable()


def test_writes_beyond_the_end_are_refused(opened: Opened) -> None:
    """TensorRT would ignore them."""
    backend, caches = opened.backend, opened.backend.new_caches(1)
    rows = [part.capacity for part in caches.parts.values()]
    for lower, upper in ((rows[0], 0), (0, rows[1]), (-1, 0)):
        with pytest.raises(BackendError, match="do not fit into caches of 1 x"):
            backend.decode(caches, token_feeds([5], [lower], [upper]))
    with pytest.raises(BackendError, match="do not fit into caches of 1 x"):
        backend.decode(caches, token_feeds([5, 5], [0, 0], [0, 0]))


# Between the engines


def test_the_host_waits_for_kept_tokens_and_logits_only(opened: Opened) -> None:
    running = Slots(opened.backend, open_bundle(opened.folder), 1)
    inputs = running.inputs("What are they?", [random_image(1), random_image(2)])
    before = opened.device.calls.copy()
    one = running.add(0, inputs)
    assert (opened.device.calls - before)["cudaStreamSynchronize"] == 2 + 1
    opened.backend.fetch(one.kept_rows)
    assert (opened.device.calls - before)["cudaStreamSynchronize"] == 2 + 2


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
    ((names, absent),) = opened.backend._no_visual.items()
    assert names == ("llm_lower", "visual_embeds") and (content(opened.device, absent) == 0).all()
    caches = opened.backend.new_caches(2)
    opened.backend.decode(caches, token_feeds([5, 6], [0, 0], [0, 0]))
    (step,) = caches.steps.values()
    absent = step._tensors[names]
    assert absent.shape[:2] == (2, 1) and (content(opened.device, absent) == 0).all()


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
    cuda = Cuda(FakeCuda())
    staging, tensor = Staging(cuda), DevicePool(cuda).take((3, 100), "bfloat16")
    numbers = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    staging.upload(numbers.astype(numpy_dtype("bfloat16")), tensor.address)
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
    features = backend.run("vision_encoder", opened.pipeline().prepared(random_image(0)).encoder_inputs)
    with backend:
        backend.decode(caches, token_feeds([5], [0], [0]))
    backend.close()
    del features
    check_nothing_left(device)
    for call in (lambda: backend.new_caches(1), lambda: backend.decode(caches, token_feeds([5], [0], [0]))):
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
    again = open_backend(opened.engines, folder, FakeCuda())
    assert again._session.kernels._cache.content.startswith(written)
    file.write_bytes(b"of another GPU")
    other = open_backend(opened.engines, folder, FakeCuda())
    del again, other
    assert file.read_bytes() != b"of another GPU"


def test_a_bundle_that_cannot_be_written_to_keeps_no_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_on(folder, RTX)

    def refuse(self: Path, mode: str = "r", *_: object) -> IO[bytes]:
        assert "w" in mode
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "open", refuse)
    opened.backend.close()
    assert not (opened.engines.folder / KERNELS).exists()


@pytest.mark.parametrize("flavour", [NEW, OLD], ids=str)
def test_tensorrt_compiles_no_kernels(folder: Path, flavour: Flavour) -> None:
    opened = open_on(folder, flavour)
    opened.backend.close()
    assert not (opened.engines.folder / KERNELS).exists()
