"""Answers through Triton are the pipeline's own: over gRPC and HTTP, streamed and whole, whatever a request asks for."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from sts_export import Pipeline
from sts_export.requests.messages import RawText
from sts_export.testing.triton.server import Triton
from tests.support.triton.asking import PATIENCE, answer, check_same
from tests.support.triton.home import needs_triton
from tests.support.triton.repositories import MODEL

pytestmark = [needs_triton, pytest.mark.slow]
QUESTIONS = ["Tell me the color of the square.", "What does the text say?", "Count the things in red."]
LONG = "What is left?"  # whose answer goes on where it is not ended


def post(triton: Triton, how: str, **body: Any) -> httpx.Response:
    return httpx.post(f"http://{triton.http}/v2/models/{MODEL}/{how}", json=body, timeout=PATIENCE, trust_env=False)


@pytest.mark.parametrize("stream", [False, True])
def test_grpc(triton: Triton, pipeline: Pipeline, scenes: list[bytes], stream: bool) -> None:
    for question, scene in zip(QUESTIONS, scenes, strict=False):
        found = answer(triton.grpc, MODEL, text_input=question, image=scene, stream=stream)
        check_same(found, pipeline.generate(question, scene))


def test_http_generate(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    for question, scene in zip(QUESTIONS, scenes, strict=False):
        expected = pipeline.generate(question, scene)
        for image in (base64.b64encode(scene).decode(), "data:image/png;base64," + base64.b64encode(scene).decode()):
            found = post(triton, "generate", text_input=question, image=image).json()
            visual = expected.visual_tokens
            assert found["text_output"] == expected.text
            assert (found["finish_reason"], found["num_input_tokens"]) == (expected.finish_reason, expected.prompt_tokens)
            assert found["num_output_tokens"] == len(expected.token_ids)
            assert found["visual_tokens"] == [visual.total, visual.stage1, visual.stage2]


def test_http_generate_stream(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    asked = {"text_input": LONG, "image": [base64.b64encode(scenes[0]).decode()], "stream": True}
    lines = post(triton, "generate_stream", **asked, max_tokens=20, ignore_eos=True).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    expected = pipeline.generate(LONG, scenes[0], max_new_tokens=20, ignore_eos=True)
    assert "".join(event["text_output"] for event in events) == expected.text
    assert len(events) > 2
    assert sum(event["num_output_tokens"] for event in events) == 20
    assert events[-1]["finish_reason"] == "length" and not any("finish_reason" in event for event in events[:-1])


def test_pieces(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    options: dict[str, Any] = {"text_input": LONG, "image": scenes[0], "max_tokens": 30, "ignore_eos": True}
    found = answer(triton.grpc, MODEL, stream=True, **options)
    pieces = list(pipeline.stream(LONG, scenes[0], max_new_tokens=30, ignore_eos=True))
    assert [text.decode() for text in found.all("text_output")] == [*pieces, ""]
    whole = answer(triton.grpc, MODEL, **options)
    assert len(whole.responses) == 1 and whole.text() == found.text()


def test_several_pictures(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """By tensor and by URL: first the tensor's, then the URLs."""
    question = "Which picture has more circles?"
    urls = ["data:image/png;base64," + base64.b64encode(scenes[1]).decode()]
    found = answer(triton.grpc, MODEL, text_input=question, image=[scenes[0], b""], image_url=urls, return_kept=True)
    expected = pipeline.generate(question, [scenes[0], scenes[1]])
    check_same(found, expected)
    assert found.all("kept_stage1_counts") == [len(one) for one in expected.kept_stage1]
    assert found.all("kept_stage1") == [token for one in expected.kept_stage1 for token in one]
    assert found.all("kept_stage2") == expected.kept_stage2


def test_chat(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """Parts without a URL take the tensor's pictures, in order; others have their own."""
    url = "data:image/png;base64," + base64.b64encode(scenes[1]).decode()
    place: dict[str, Any] = {"type": "image"}
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [place, {"type": "text", "text": QUESTIONS[0]}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTIONS[1]}]},
    ]
    last: dict[str, Any] = {"role": "user", "content": [place, {"type": "text", "text": QUESTIONS[1]}]}
    found = answer(triton.grpc, MODEL, messages=json.dumps(turns), image=scenes[0])
    check_same(found, pipeline.generate([*turns[:3], last], [scenes[0], scenes[1]]))


def test_text_alone(triton: Triton, pipeline: Pipeline) -> None:
    check_same(answer(triton.grpc, MODEL, text_input="Is a square round?"), pipeline.generate("Is a square round?"))


def test_prompt_without_the_chat_template(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    prompt = f"USER: {pipeline.tokenizer.image_token}\n{QUESTIONS[0]} ASSISTANT:"
    found = answer(triton.grpc, MODEL, text_input=prompt, image=scenes[0], chat_template=False)
    check_same(found, pipeline.generate(RawText(prompt), scenes[0]))


@pytest.mark.parametrize("budget", ["32", "5%"])
def test_budget(triton: Triton, pipeline: Pipeline, scenes: list[bytes], budget: str) -> None:
    found = answer(triton.grpc, MODEL, text_input=QUESTIONS[0], image=scenes[0], budget=budget)
    check_same(found, pipeline.generate(QUESTIONS[0], scenes[0], budget=budget))


def test_sampling(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """As tensors, as one JSON object, also with numbers in strings, and as parameters of the request."""
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "seed": 7}
    sampling = pipeline.sampling_defaults(**settings)
    expected = pipeline.generate(QUESTIONS[0], scenes[0], sampling=sampling, max_new_tokens=12, ignore_eos=True)
    common: dict[str, Any] = {"text_input": QUESTIONS[0], "image": scenes[0], "max_tokens": 12, "ignore_eos": True}
    check_same(answer(triton.grpc, MODEL, **common, **settings), expected)
    check_same(answer(triton.grpc, MODEL, **common, sampling_parameters=json.dumps(settings)), expected)
    texts = {name: str(value) for name, value in settings.items()}
    check_same(answer(triton.grpc, MODEL, **common, sampling_parameters=json.dumps(texts)), expected)
    picture = base64.b64encode(scenes[0]).decode()
    body = {"text_input": QUESTIONS[0], "image": picture, "parameters": {**settings, "max_tokens": 12, "ignore_eos": True}}
    assert post(triton, "generate", **body).json()["text_output"] == expected.text


def test_grammar_and_stop(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    from sts_export.requests.grammars.grammar import Grammar

    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    given = json.dumps({"response_format": form})
    found = answer(triton.grpc, MODEL, text_input=QUESTIONS[0], image=scenes[0], sampling_parameters=given)
    check_same(found, pipeline.generate(QUESTIONS[0], scenes[0], grammar=Grammar.json_schema(schema)))
    long = pipeline.generate(LONG, scenes[0], max_new_tokens=20, ignore_eos=True).text
    stop = long[4:7]
    found = answer(triton.grpc, MODEL, text_input=LONG, image=scenes[0], max_tokens=20, ignore_eos=True, stop=[stop, "zzz"])
    expected = pipeline.generate(LONG, scenes[0], max_new_tokens=20, ignore_eos=True, stop=[stop, "zzz"])
    check_same(found, expected)


def test_batch(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """Rows of one request are answered as they would be alone; pictures of rows that have fewer are empty."""
    found = answer(
        triton.grpc,
        MODEL,
        rows=3,
        text_input=QUESTIONS,
        image=[[scenes[0], b""], [scenes[1], scenes[2]], [b"", b""]],
        budget=["64", "32", "64"],
        return_kept=[True, True, False],
    )
    assert len(found.responses) == 1
    for row, (pictures, budget) in enumerate(((scenes[:1], 64), (scenes[1:3], 32), ([], 64))):
        expected = pipeline.generate(QUESTIONS[row], pictures, budget=budget)
        check_same(found, expected, row)
        kept = [token for token in found.all("kept_stage2", row) if token >= 0]
        assert kept == (expected.kept_stage2 if row < 2 else [])


def test_many_at_once(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """More clients than slots: nothing is mixed."""
    cases = [(question, place % len(scenes)) for place, question in enumerate(QUESTIONS * 6)]
    expected = {case: pipeline.generate(case[0], scenes[case[1]], max_new_tokens=9, ignore_eos=True) for case in set(cases)}

    def one(case: tuple[str, int]) -> None:
        question, place = case
        found = answer(
            triton.grpc, MODEL, text_input=question, image=scenes[place], max_tokens=9, ignore_eos=True, stream=place % 2 == 0
        )
        check_same(found, expected[case])

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(one, cases))


def test_additional_outputs(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    """The vLLM backend's own test of these: each is there if and only if it is asked for."""
    usual = {"finish_reason", "num_input_tokens", "num_output_tokens", "visual_tokens"}
    options: dict[str, Any] = {"text_input": QUESTIONS[0], "image": scenes[0]}
    assert answer(triton.grpc, MODEL, **options).responses[0].keys() == {"text_output", *usual}
    off = {f"return_{name}": False for name in usual}
    assert answer(triton.grpc, MODEL, **options, **off).responses[0].keys() == {"text_output"}
    only = answer(triton.grpc, MODEL, **options, wanted=["text_output", "finish_reason"])
    assert only.responses[0].keys() == {"text_output", "finish_reason"}
    timed = answer(triton.grpc, MODEL, **options, return_timings=True)
    assert json.loads(timed.all("timings_ms")[0]).keys() >= {"vision", "select", "prefill_lower", "first_token"}


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(triton: Triton, pipeline: Pipeline, scenes: list[bytes], stream: bool) -> None:
    found = answer(
        triton.grpc, MODEL, text_input=QUESTIONS[0], image=scenes[0], stream=stream, return_logprobs=True,
        return_cumulative_logprob=True, sampling_parameters='{"logprobs": 2}',
    )  # fmt: skip
    expected = pipeline.generate(QUESTIONS[0], scenes[0], logprobs=2)
    assert expected.logprobs is not None
    entries = [entry for text in found.all("logprobs") for entry in json.loads(text)]
    assert len(entries) == len(expected.token_ids)
    for entry, one in zip(entries, expected.logprobs, strict=True):
        assert entry[str(one.token_id)]["logprob"] == pytest.approx(one.logprob, abs=1e-4)
        ranks = {int(token): values["rank"] for token, values in entry.items()}
        assert [ranks[token] for token, _ in one.top] == [1, 2]
    total = sum(one.logprob for one in expected.logprobs)
    np.testing.assert_allclose(found.all("cumulative_logprob")[-1], total, atol=1e-4)


def test_input_before_the_answer(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    text = pipeline.generate(QUESTIONS[0], scenes[0]).text
    for stream in (False, True):
        found = answer(
            triton.grpc, MODEL, text_input=QUESTIONS[0], image=scenes[0], exclude_input_in_output=False, stream=stream
        )
        assert found.text() == QUESTIONS[0] + text
