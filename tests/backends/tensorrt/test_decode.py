"""Captured decode steps, on fakes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.backends.cuda_runtime import Cuda, CudaGraph
from sts_export.testing.checkpoints import random_image
from sts_export.testing.fakes.cuda import FakeCuda, cudaError_t
from tests.support.tensorrt_backend import (
    FLAVOURS,
    NEW_TOKENS,
    RTX,
    Flavour,
    Opened,
    check_nothing_left,
    flavour_of,
    open_on,
    token_feeds,
)


def test_a_settled_decode_step_is_one_launch(opened: Opened) -> None:
    """After the first two steps (of each pair of buffers) nothing is allocated or bound: a launch and a wait."""
    caches, device = opened.backend.new_caches(2), opened.device
    settled = 2 * flavour_of(opened).copies
    for row in range(8):
        before = device.calls.copy()
        opened.backend.decode(caches, token_feeds([5, 6], [row] * 2, [row] * 2))
        calls = device.calls - before
        if row >= settled:
            assert calls == {"cudaSetDevice": 1, "cudaGraphLaunch": 1, "cudaStreamSynchronize": 1}
    assert device.calls["cudaStreamBeginCapture"] == flavour_of(opened).copies
    assert device.live_graphs() == flavour_of(opened).copies


def test_prompts_and_tokens_run_in_their_own_profiles(opened: Opened) -> None:
    opened.pipeline().generate("What is it?", random_image(1), max_new_tokens=NEW_TOKENS, ignore_eos=True)
    for graph in ("llm_lower", "llm_upper"):
        assert opened.runs(graph) == {0: 1, 1: NEW_TOKENS - 1}
    for graph in ("vision_encoder", "selector"):
        assert opened.runs(graph) == {0: 1}


def test_contexts_are_used_again(opened: Opened) -> None:
    """By caches that come later, of the same batch or another: making one takes TensorRT a while."""
    for batch in (1, 1, 3, 2):
        caches = opened.backend.new_caches(batch)
        for row in range(5):
            same = [row] * batch
            opened.backend.decode(caches, token_feeds([5] * batch, same, same))
        del caches
    copies = flavour_of(opened).copies
    for graph in ("llm_lower", "llm_upper"):
        assert opened.backend._engines[graph]._engine.contexts == 1 + copies


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_engines_that_cannot_be_captured_are_enqueued(folder: Path, expected: Pipeline, flavour: Flavour) -> None:
    opened = open_on(folder, flavour, capturable=False)
    arguments: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    ours = opened.pipeline().generate("What is it?", random_image(1), **arguments)
    assert ours.token_ids == expected.generate("What is it?", random_image(1), **arguments).token_ids
    # TensorRT for RTX is asked; TensorRT is tried three times for each pair of buffers, and not again.
    assert opened.device.calls["cudaStreamBeginCapture"] == (0 if flavour == RTX else 3 * flavour.copies)
    assert opened.device.calls["cudaGraphLaunch"] == 0
    opened.backend.close()
    check_nothing_left(opened.device)


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_fails_is_tried_again(folder: Path, expected: Pipeline, call: str) -> None:
    opened = open_on(folder)
    opened.device.failures[call] = cudaError_t.cudaErrorInvalidValue
    opened.backend._session.messages.add("the capture failed")
    arguments: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    ours = opened.pipeline().generate("What is it?", random_image(1), **arguments)
    assert call not in opened.device.failures
    assert ours.token_ids == expected.generate("What is it?", random_image(1), **arguments).token_ids
    # But for the prompt, the first step, which settles the shapes, and the one that was not captured.
    assert opened.device.calls["cudaGraphLaunch"] == NEW_TOKENS - 3
    assert "the capture failed" not in opened.backend._session.messages.take()  # it explains no later failure
    opened.backend.close()
    check_nothing_left(opened.device)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["another thread", "the same thread"])
def test_caches_dropped_during_a_capture(opened: Opened, elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a graph of their own; they are freed when the capture is over, which they do not break."""
    backend, device = opened.backend, opened.device
    before = device.live(True)
    held = [backend.new_caches(1)]
    for row in range(4):
        backend.decode(held[0], token_feeds([5], [row], [row]))
    dropped, original = device.live(True) - before, Cuda.capture

    def capture(self: Cuda, work: Callable[[], None]) -> CudaGraph:
        def dropping() -> None:
            if elsewhere:
                thread = threading.Thread(target=held.clear)
                thread.start()
                thread.join()
            else:
                held.clear()
            work()

        return original(self, dropping)

    monkeypatch.setattr(Cuda, "capture", capture)
    caches = backend.new_caches(1)
    for row in range(4):
        backend.decode(caches, token_feeds([5], [row], [row]))
    assert held == [] and device.problems == []
    copies = flavour_of(opened).copies
    assert device.calls["cudaStreamBeginCapture"] == 2 * copies == 2 * device.live_graphs()
    assert device.live(True) == before + dropped  # one of two


def test_a_capture_waits_for_a_release() -> None:
    """That another thread has begun: its cudaFree may wait for the stream."""
    began, go_on = threading.Event(), threading.Event()

    class Slow(FakeCuda):
        def cudaFree(self, address: int) -> tuple[cudaError_t]:
            began.set()
            go_on.wait()
            return super().cudaFree(address)

    device = Slow()
    cuda = Cuda(device)
    memory, target = cuda.allocate(16, "a test"), cuda.allocate(16, "a test")
    releasing = threading.Thread(target=memory.free)
    capturing = threading.Thread(target=lambda: cuda.capture(lambda: cuda.clear(target.address, 16)))
    releasing.start()
    began.wait()
    capturing.start()
    capturing.join(0.1)
    started = device.calls["cudaStreamBeginCapture"]
    go_on.set()
    releasing.join()
    capturing.join()
    assert (started, device.calls["cudaStreamBeginCapture"]) == (0, 1)
    assert device.problems == [] and device.live(True) == 16
