"""What Triton's own tests of such backends ask for beside answers: health, metrics, cancelling, limits, loading and unloading.

Source: ci/ of github.com/triton-inference-server/vllm_backend.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.testing.triton.server import Triton, triton_server
from tests.support.triton.asking import PATIENCE, Answered, answer, asked, check_same
from tests.support.triton.home import needs_triton
from tests.support.triton.repositories import MODEL
from tests.triton.served.conftest import Written

pytestmark = [needs_triton, pytest.mark.slow]
QUESTION = "What is left?"
LONG: dict[str, Any] = {"text_input": QUESTION, "max_tokens": 1000, "ignore_eos": True, "stream": True}
READY = f"/v2/models/{MODEL}/ready"


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def control(triton: Triton) -> Any:
    from tritonclient.grpc import InferenceServerClient

    return InferenceServerClient(triton.grpc)


def test_metrics(written: Written, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """Counts are those of the answers, under the names of ``serve``, by instance."""
    with triton_server(written().folder) as triton:
        before = triton.metric("sts_request_success_total", finished_reason="stop")
        for scene in scenes[:2]:
            check_same(answer(triton.grpc, MODEL, text_input=QUESTION, image=scene), pipeline.generate(QUESTION, scene))
        answer(triton.grpc, MODEL, text_input=QUESTION, image=scenes[0], max_tokens=1)
        expected = [pipeline.generate(QUESTION, scene) for scene in scenes[:2]]
        until(lambda: triton.metric("sts_request_success_total") >= 3)
        assert triton.metric("sts_request_success_total", finished_reason="stop") == before + 2
        assert triton.metric("sts_request_success_total", finished_reason="length", model=MODEL) == 1
        tokens = sum(len(one.token_ids) for one in expected) + 1
        assert triton.metric("sts_generation_tokens_total", instance=f"{MODEL}_0_0") == tokens
        assert triton.metric("sts_visual_tokens_total", stage="stage1") == 3 * expected[0].visual_tokens.stage1
        assert triton.metric("sts_request_queue_time_seconds_count") == 3
        assert triton.metric("sts_time_to_first_token_seconds_sum") > 0
        assert triton.metric("sts_num_slots") == 8
        assert triton.metric("sts_feature_cache_misses_total") == 3, "two pictures, and that of the warm-up"


def test_client_that_leaves(written: Written, pipeline: Pipeline) -> None:
    """Its answer ends between two tokens; so does its place in the queue; others go on."""
    with triton_server(written(slots=1).folder) as triton, ExitStack() as streams:
        running = streams.enter_context(asked(triton.grpc, MODEL, **LONG))
        running.next()
        waiting = streams.enter_context(asked(triton.grpc, MODEL, **LONG))
        third = streams.enter_context(asked(triton.grpc, MODEL, text_input=QUESTION))
        until(lambda: triton.metric("sts_num_requests_waiting") == 2)
        waiting.leave()
        until(lambda: triton.metric("sts_requests_cancelled_total") == 1)
        assert triton.metric("sts_num_requests_running") == 1
        running.leave()
        check_same(third.rest(), pipeline.generate(QUESTION))
        until(lambda: triton.metric("sts_requests_cancelled_total") == 2)
        assert triton.metric("sts_request_success_total", finished_reason="cancelled") == 2
        assert triton.metric("sts_generation_tokens_total") < 1000 + len(pipeline.generate(QUESTION).token_ids)


def test_clients_that_leave_at_any_moment(written: Written, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """Also at the very end, where Triton forgets the request: it must not be asked about it any more."""
    with triton_server(written(slots=4).folder) as triton:
        _leave_at_any_moment(triton, pipeline, scenes)
        os.killpg(triton.pid, signal.SIGKILL)  # 2.51 may not end after requests that are cancelled when they are over


def _leave_at_any_moment(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    expected = [pipeline.generate(QUESTION, scene, max_new_tokens=4, ignore_eos=True) for scene in scenes[:3]]

    def one(number: int) -> None:
        common: dict[str, Any] = {"text_input": QUESTION, "max_tokens": 4, "ignore_eos": True, "stream": True}
        with asked(triton.grpc, MODEL, image=scenes[number % 3], **common) as stream:
            if number % 4 == 3:
                check_same(stream.rest(), expected[number % 3])
                return
            for _ in range(number % 4):
                stream.next()

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(one, range(120)))
    until(lambda: triton.metric("sts_num_requests_running") + triton.metric("sts_num_requests_waiting") == 0)
    check_same(answer(triton.grpc, MODEL, text_input=QUESTION), pipeline.generate(QUESTION))


def test_queue_limit(written: Written, pipeline: Pipeline) -> None:
    """What comes above it is unavailable at once; those that wait are answered."""
    from tritonclient.utils import InferenceServerException

    with triton_server(written(slots=1, max_queue_size=1).folder) as triton, ExitStack() as streams:
        running = streams.enter_context(asked(triton.grpc, MODEL, **LONG))
        running.next()
        waiting = streams.enter_context(asked(triton.grpc, MODEL, text_input=QUESTION))
        until(lambda: triton.metric("sts_num_requests_waiting") == 1)
        again = pytest.raises(InferenceServerException, match="send it again later")
        with asked(triton.grpc, MODEL, text_input=QUESTION) as refused, again:
            refused.next()
        until(lambda: triton.metric("sts_requests_rejected_total") == 1)
        running.leave()
        check_same(waiting.rest(), pipeline.generate(QUESTION))


def test_longest_wait(written: Written) -> None:
    with triton_server(written(slots=1, longest_wait=0.05).folder) as triton:
        with asked(triton.grpc, MODEL, **LONG) as running:
            running.next()
            late = answer(triton.grpc, MODEL, text_input=QUESTION)
        assert late.error is not None and "no slot was free for 0.05 s" in late.error


def test_unload_and_load_while_busy(written: Written, pipeline: Pipeline) -> None:
    """Answers under way end as they should; what comes later is refused until the model is there again."""
    expected = pipeline.generate(QUESTION, max_new_tokens=1000, ignore_eos=True)
    with triton_server(written().folder, models=[MODEL]) as triton, control(triton) as client:
        with asked(triton.grpc, MODEL, **LONG) as stream:
            first, _ = stream.next()
            client.unload_model(MODEL)
            rest = stream.rest()
        check_same(Answered([first, *rest.responses], rest.error), expected)
        until(lambda: triton.get(READY) != 200 and not triton.stubs)
        assert answer(triton.grpc, MODEL, text_input=QUESTION).error is not None
        client.load_model(MODEL)
        assert triton.get(READY) == 200
        check_same(answer(triton.grpc, MODEL, text_input=QUESTION), pipeline.generate(QUESTION))


def running(triton: Triton) -> dict[int, float]:
    """Requests in slots, by process."""
    return {pid: triton.metric("sts_num_requests_running", process=str(pid)) for pid in triton.stubs}


def test_several_instances(written: Written, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """Each has a process of its own, and all of them answer."""
    with triton_server(written(instances=2).folder) as triton:
        shown = scenes[:3] * 4
        with ThreadPoolExecutor(6) as clients:
            found = list(clients.map(lambda scene: answer(triton.grpc, MODEL, text_input=QUESTION, image=scene), shown))
        for one, scene in zip(found, shown, strict=True):
            check_same(one, pipeline.generate(QUESTION, scene))
        until(lambda: triton.metric("sts_request_success_total") == 12)
        assert all(triton.metric("sts_request_success_total", process=str(pid)) for pid in triton.stubs)
        assert len(triton.stubs) == 2


def test_process_that_is_killed(written: Written, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """The other instance's answers are unharmed, the server goes on, and a model that is loaded anew is whole.

    Triton 2.51 neither ends what the lost process was answering, nor starts another: its client has to leave.
    """
    expected = pipeline.generate(QUESTION, max_new_tokens=1000, ignore_eos=True)
    with triton_server(written(instances=2).folder, models=[MODEL]) as triton, control(triton) as client:
        with asked(triton.grpc, MODEL, **LONG) as lost:
            lost.next()
            until(lambda: sum(running(triton).values()) == 1)
            victim = next(pid for pid, count in running(triton).items() if count)
            with asked(triton.grpc, MODEL, **LONG) as other:
                first, _ = other.next()
                until(lambda: sorted(running(triton).values()) == [1, 1])
                os.kill(victim, signal.SIGKILL)
                rest = other.rest()
            check_same(Answered([first, *rest.responses], rest.error), expected)
        later = [answer(triton.grpc, MODEL, text_input=QUESTION) for _ in range(4)]
        for one in later:
            assert one.error is not None or one.text() == pipeline.generate(QUESTION).text
        assert any(one.error is None for one in later)
        client.unload_model(MODEL)
        client.load_model(MODEL)
        for scene in scenes[:2] * 2:
            check_same(answer(triton.grpc, MODEL, text_input=QUESTION, image=scene), pipeline.generate(QUESTION, scene))
        os.killpg(triton.pid, signal.SIGKILL)  # it would wait for what was lost


def test_bundle_that_cannot_run(written: Written, demo: Path, tmp_path: Path) -> None:
    """The server says so in one line of its log, is not ready, and goes on with other models."""
    repository = written()
    broken = repository.folder / MODEL / "1" / "bundle"
    broken.unlink()
    shutil.copytree(demo, broken)
    (broken / "selector.onnx").write_bytes(b"")
    with triton_server(repository.folder, exit_on_error=False) as triton:
        assert triton.get("/v2/health/live") == 200
        assert triton.get("/v2/health/ready") == 400 and triton.get(READY) == 400
        log = triton.log.read_text()
    assert any("selector.onnx" in line and "export the bundle again" in line for line in log.splitlines())


def test_wrong_parameter(written: Written) -> None:
    repository = written()
    config = repository.folder / MODEL / "config.pbtxt"
    config.write_text(config.read_text().replace('"slots"', '"solts"'))
    with pytest.raises(AssertionError, match="a parameter 'solts' that is not known"), triton_server(repository.folder):
        pass
