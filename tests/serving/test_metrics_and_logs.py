"""What Prometheus and the log say of requests, and what they do not."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sts_export import Pipeline
from sts_export.errors import BackendError
from sts_export.generation.scheduling.answers import Event, Finished, Piece
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.serving.logs import JsonLines
from sts_export.serving.settings import Settings
from tests.support.mixed_requests import NEW, SQUARE, WIDE, Opened
from tests.support.scheduling.gates import PATIENCE, Gate, until
from tests.support.scheduling.served import MODEL, Served, Start, chat

SECRET = "a secret question"


def test_metrics_of_answers(start: Start, opened: Opened) -> None:
    served, vlm = start("llava"), opened("llava")
    client = served.client()
    wanted = [vlm.generate("What?", SQUARE), vlm.generate("Where?", [WIDE, SQUARE]), vlm.generate("Why?")]
    for prompt, images in (("What?", SQUARE), ("Where?", [WIDE, SQUARE]), ("Why?", None)):
        list(client.chat.completions.create(model=MODEL, messages=chat(prompt, images), stream=True))
    assert served.metric("sts_prompt_tokens_total") == sum(one.prompt_tokens for one in wanted)
    assert served.metric("sts_generation_tokens_total") == sum(len(one.token_ids) for one in wanted)
    for stage, name in (("input", "total"), ("stage1", "stage1"), ("stage2", "stage2")):
        count = sum(getattr(one.visual_tokens, name) for one in wanted)
        assert served.metric("sts_visual_tokens_total", stage=stage) == count
    for reason in ("stop", "length"):
        count = sum(one.finish_reason == reason for one in wanted)
        assert served.metric("sts_request_success_total", finished_reason=reason) == count
    for name in (
        "time_to_first_token",
        "request_queue_time",
        "request_prefill_time",
        "request_decode_time",
        "e2e_request_latency",
    ):
        assert served.metric(f"sts_{name}_seconds_count") == 3
    for name in ("request_vision_time", "request_selection_time"):
        assert served.metric(f"sts_{name}_seconds_count") == 2  # the third has no picture
    assert served.metric("sts_inter_token_latency_seconds_count") > 0
    assert served.metric("sts_num_slots") == 3
    assert served.metric("sts_http_responses_total", route="/v1/chat/completions", status="200") == 3


@pytest.mark.parametrize("streamed", [False, True])
def test_times_begin_with_the_head(start: Start, caplog: pytest.LogCaptureFixture, streamed: bool) -> None:
    """A body that is late is a part of them."""
    served = start()
    content = json.dumps({"model": MODEL, "messages": chat("Where?"), "max_tokens": 1, "stream": streamed}).encode()
    lines_of_head = "Host: x", "Content-Type: application/json", f"Content-Length: {len(content)}", "Expect: 100-continue"
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines_of_head, "Connection: close", "", ""])
    host, port = served.url.removeprefix("http://").split(":")
    with caplog.at_level(logging.INFO, "sts_export.serving"):
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock, sock.makefile("rb") as answer:
            sock.sendall(head.encode())
            assert answer.readline().startswith(b"HTTP/1.1 100 ")  # the head has come
            since = time.perf_counter()
            threading.Event().wait(0.2)
            late = time.perf_counter() - since
            sock.sendall(content)
            assert b" 200 OK" in answer.read()
        until(lambda: any(line.get("first_token_ms") for line in lines(caplog)))
    line = next(line for line in lines(caplog) if "first_token_ms" in line)
    assert late * 1e3 <= line["first_token_ms"] + 0.05 and line["first_token_ms"] <= line["ms"] + 0.1
    first, whole = (served.metric(f"sts_{name}_seconds_sum") for name in ("time_to_first_token", "e2e_request_latency"))
    assert late <= first <= whole


def test_times_have_the_wait_for_a_slot(start: Start, gated: tuple[Pipeline, Gate], caplog: pytest.LogCaptureFixture) -> None:
    vlm, gate = gated
    served = start(vlm, slots=1)
    body = {"model": MODEL, "messages": chat("Where?"), "ignore_eos": True, "max_tokens": 2}
    with caplog.at_level(logging.INFO, "sts_export.serving"), post(served, json.dumps(body).encode()):
        until(lambda: served.service.load.running == 1)
        with post(served, json.dumps({**body, "max_tokens": 1}).encode()):
            until(lambda: served.service.load.waiting == 1)
            since = time.perf_counter()
            threading.Event().wait(0.2)
            waited = time.perf_counter() - since
            gate.open()
            until(lambda: sum("queue_ms" in line for line in lines(caplog)) == 2)
    first, second = (line for line in lines(caplog) if "queue_ms" in line)
    assert first["queue_ms"] < second["queue_ms"] and waited * 1e3 <= second["queue_ms"] + 0.05
    assert second["queue_ms"] <= second["first_token_ms"] + 0.1 and second["first_token_ms"] <= second["ms"] + 0.1
    names = "request_queue_time", "time_to_first_token", "e2e_request_latency"
    queued, answered, whole = (served.metric(f"sts_{name}_seconds_sum") for name in names)
    assert waited <= queued <= answered <= whole


def test_times_between_tokens(start: Start, opened: Opened, gated: tuple[Pipeline, Gate]) -> None:
    """They are the answer's, no more and no less."""
    vlm, gate = gated
    told: list[Event] = []
    with Scheduler(opened("llava"), slots=1) as scheduler:
        scheduler.submit(vlm.prepare("Where?", ignore_eos=True), told.append)
        until(lambda: bool(told) and isinstance(told[-1], Finished))
    first, second, *_ = told
    assert isinstance(first, Piece) and isinstance(second, Piece)
    served = start(vlm, slots=1)
    options: Any = {"model": MODEL, "messages": chat("Where?"), "extra_body": {"ignore_eos": True}}
    began = time.perf_counter()
    with served.client().chat.completions.create(**options, stream=True) as stream:
        gate.let(first.tokens - 1)
        assert next(text for chunk in stream if (text := chunk.choices[0].delta.content)) == first.text
        since = time.perf_counter()
        threading.Event().wait(0.2)  # before the next piece
        late = time.perf_counter() - since
        gate.open()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    between = served.metric("sts_inter_token_latency_seconds_sum")
    assert late / NEW <= between <= time.perf_counter() - began
    assert between <= served.metric("sts_e2e_request_latency_seconds_sum")


@pytest.mark.parametrize("streamed", [False, True])
def test_who_leaves_is_cancelled(
    start: Start, gated: tuple[Pipeline, Gate], caplog: pytest.LogCaptureFixture, streamed: bool
) -> None:
    """In the line, with the tokens that were made by then, and among the requests by how they ended."""
    vlm, gate = gated
    served = start(vlm, slots=1)
    body = {"model": MODEL, "messages": chat("Where?"), "ignore_eos": True, "stream": streamed}
    with caplog.at_level(logging.INFO, "sts_export.serving"):
        with post(served, json.dumps(body).encode()):
            until(lambda: served.service.load.running == 1)
            gate.let(3)
            until(lambda: gate.calls.count("step") == 3)
        until(lambda: any("finish_reason" in line for line in lines(caplog)))
        gate.let(1)  # between two steps it is given up
        until(lambda: served.service.load.running == 0)
    line = next(line for line in lines(caplog) if "finish_reason" in line)
    assert line["finish_reason"] == "cancelled" and line["status"] == (200 if streamed else 499)
    assert 0 < line["completion_tokens"] <= 4
    assert served.metric("sts_request_success_total", finished_reason="cancelled") == 1
    assert served.metric("sts_requests_cancelled_total") == 1 and served.metric("sts_requests_failed_total") == 0
    assert line["completion_tokens"] <= served.metric("sts_generation_tokens_total") <= 5


def test_a_stream_that_fails_has_its_error_in_the_log(
    start: Start, gated: tuple[Pipeline, Gate], caplog: pytest.LogCaptureFixture
) -> None:
    vlm, gate = gated
    served = start(vlm, slots=1)
    gate.error = BackendError("the engine ran out of memory; try again")
    gate.open()
    with caplog.at_level(logging.INFO, "sts_export.serving"):
        body = {"model": MODEL, "messages": chat("Where?"), "ignore_eos": True, "stream": True}
        httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE)
        until(lambda: len(lines(caplog)) == 1)
    assert "out of memory" in lines(caplog)[0]["error"] and "finish_reason" not in lines(caplog)[0]


def post(served: Served, content: bytes) -> socket.socket:
    """A client that reads nothing."""
    host, port = served.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    sock.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
    return sock


def test_what_clients_make_up_is_no_label(start: Start) -> None:
    served = start()
    for path in ("/v1/models/secret-name", "/secret", "/secret?x=secret"):
        httpx.get(served.url + path)
    text = httpx.get(served.url + "/metrics").text
    assert "secret" not in text
    assert served.metric("sts_http_responses_total", route="none", status="404") == 2
    names = {family.name for family in text_string_to_metric_families(text)}
    assert all(name.startswith("sts_") for name in names)


def test_found_pictures_are_counted(opened: Opened, start: Start) -> None:
    with Pipeline(opened("llava").bundle.folder, threads=1, feature_cache=1 << 22) as vlm:
        served = start(vlm)
        for prompt, budget in (("What?", 8), ("Where?", 8), ("Where?", 6)):
            options: Any = {"model": MODEL, "messages": chat(prompt, SQUARE), "extra_body": {"budget": budget}}
            served.client().chat.completions.create(**options)
        for cache, hits, misses in (("feature", 2, 1), ("selection", 1, 2)):
            assert served.metric(f"sts_{cache}_cache_hits_total") == hits
            assert served.metric(f"sts_{cache}_cache_misses_total") == misses


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    form = JsonLines()
    return [json.loads(form.format(record)) for record in caplog.records if record.name == "sts_export.serving"]


@pytest.mark.parametrize("asked_for", [False, True])
def test_prompts_are_logged_only_on_request(start: Start, caplog: pytest.LogCaptureFixture, asked_for: bool) -> None:
    served = start(settings=Settings(MODEL, log_prompts=asked_for))
    with caplog.at_level(logging.INFO, "sts_export.serving"):
        options: Any = {"model": MODEL, "messages": chat(SECRET, SQUARE)}
        found = served.client().chat.completions.with_raw_response.create(**options)
        request_id = found.headers["x-request-id"]
        httpx.post(f"{served.url}/v1/chat/completions", json={**options, "temperature": -1}, timeout=PATIENCE)
        until(lambda: len(lines(caplog)) == 2)  # a line comes after its response
    answered, refused = lines(caplog)
    assert answered["id"] == request_id and (answered["status"], refused["status"]) == (200, 400)
    assert answered["prompt_tokens"] > 0 and answered["visual_tokens"][0] == 36 and answered["queue_ms"] >= 0
    assert "temperature" in refused["error"]
    assert (SECRET in json.dumps(answered)) == asked_for
    assert "base64" not in json.dumps([answered, refused])


def test_a_bug_is_an_answer_and_a_line(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    served = start()
    served.service.settings = None  # type: ignore[assignment]
    with caplog.at_level(logging.INFO, "sts_export.serving"):
        response = httpx.post(f"{served.url}/v1/chat/completions", json={}, timeout=PATIENCE)
        until(lambda: len(lines(caplog)) == 2)
    assert response.status_code == 500 and response.json()["error"]["code"] == "internal_error"
    crash, request = lines(caplog)
    assert crash["id"] == request["id"] == response.headers["x-request-id"] and "Traceback" in crash["exception"]
