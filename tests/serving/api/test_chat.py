"""OpenAI's own client gets the pipeline's answers."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from sts_export.requests.logits_config import LogitsConfig
from tests.support.mixed_requests import FAMILIES, REQUESTS, SQUARE, WIDE, Opened
from tests.support.scheduling.served import MODEL, Start, chat

INDICES = range(len(REQUESTS))
Client = openai.OpenAI


def ask(client: Client, messages: list[Any], **settings: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **settings)


def generate(opened: Opened, index: int, **settings: Any) -> Any:
    prompt, images = REQUESTS[index]
    return opened("llava").generate(prompt, () if images is None else images, **settings)


@pytest.mark.parametrize("index", INDICES)
def test_whole_answers(client: Client, opened: Opened, index: int) -> None:
    wanted = generate(opened, index)
    found = ask(client, chat(*REQUESTS[index]))
    choice = found.choices[0]
    assert (choice.message.content, choice.finish_reason) == (wanted.text, wanted.finish_reason)
    assert choice.message.role == "assistant" and found.object == "chat.completion" and found.model == MODEL
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (wanted.prompt_tokens, len(wanted.token_ids))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    visual = wanted.visual_tokens
    assert usage.visual_tokens == {"total": visual.total, "stage1": visual.stage1, "stage2": visual.stage2}


@pytest.mark.parametrize("index", INDICES)
def test_streams(client: Client, opened: Opened, index: int) -> None:
    wanted = generate(opened, index)
    chunks = list(ask(client, chat(*REQUESTS[index]), stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *told, used = chunks
    assert used.choices == [] and used.usage.completion_tokens == len(wanted.token_ids)
    assert all(chunk.usage is None for chunk in told)
    assert told[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in told[1:-1]]
    assert "".join(pieces) == wanted.text and all(pieces)
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * (len(told) - 1) + [wanted.finish_reason]


def test_usage_is_streamed_only_on_request(client: Client) -> None:
    chunks = list(ask(client, chat("Where?"), stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llava"])
def test_families(start: Start, opened: Opened, name: str) -> None:
    client, vlm = start(name).client(), opened(name)
    for prompt, images in REQUESTS:
        wanted = vlm.generate(prompt, () if images is None else images)
        assert ask(client, chat(prompt, images)).choices[0].message.content == wanted.text


@pytest.mark.parametrize(
    "settings, own",
    [
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"presence_penalty": 1.5}, {"logits": LogitsConfig(presence_penalty=1.5)}),
        ({"frequency_penalty": -1.0}, {"logits": LogitsConfig(frequency_penalty=-1.0)}),
        ({"logit_bias": {"7": 100, "9": -100}}, {"logits": LogitsConfig(logit_bias={7: 100, 9: -100})}),
        ({"extra_body": {"repetition_penalty": 1.7}}, {"logits": LogitsConfig(repetition_penalty=1.7)}),
        ({"extra_body": {"ignore_eos": True}}, {"ignore_eos": True}),
        ({"extra_body": {"budget": "4"}}, {"budget": "4"}),
        ({"extra_body": {"budget": 5}}, {"budget": 5}),
        ({"temperature": 0, "seed": 3}, {}),
        ({"user": "somebody", "metadata": {"a": "b"}, "store": False, "n": 1, "stop": []}, {"stop": ()}),
        ({"extra_body": {"tools": None, "response_format": None}}, {}),
    ],
)
def test_settings(client: Client, opened: Opened, settings: dict[str, Any], own: dict[str, Any]) -> None:
    for index in (0, 3):
        wanted = generate(opened, index, **own)
        found = ask(client, chat(*REQUESTS[index]), **settings)
        assert found.choices[0].message.content == wanted.text
        assert found.usage.completion_tokens == len(wanted.token_ids)


def test_settings_of_these_tests_change_the_answer(opened: Opened) -> None:
    """Else the test above could not fail."""
    usual = generate(opened, 0)
    for own in (
        {"max_new_tokens": 3},
        {"logits": LogitsConfig(logit_bias={7: 100, 9: -100})},
        {"logits": LogitsConfig(repetition_penalty=1.7)},
        {"budget": "4"},
    ):
        assert generate(opened, 0, **own).token_ids != usual.token_ids


@pytest.mark.parametrize("sampling", [{"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.3, "top_k": 4, "min_p": 0.1}])
def test_sampling_with_a_seed_is_the_pipelines(client: Client, opened: Opened, sampling: dict[str, Any]) -> None:
    vlm = opened("llava")
    seen = set()
    for seed in range(4):
        wanted = generate(opened, 1, sampling=vlm.sampling_defaults(**sampling, seed=seed))
        plain = {name: value for name, value in sampling.items() if name in ("temperature", "top_p")}
        others = {name: value for name, value in sampling.items() if name not in plain}
        found = ask(client, chat(*REQUESTS[1]), seed=seed, **plain, extra_body=others)
        assert found.choices[0].message.content == wanted.text
        seen.add(wanted.text)
    assert len(seen) > 1


def test_stop_strings(client: Client, opened: Opened) -> None:
    whole = generate(opened, 3).text
    stop = whole[len(whole) // 2 :][:2]
    for given in (stop, [stop, "never said"]):
        found = ask(client, chat(*REQUESTS[3]), stop=given).choices[0]
        assert found.message.content == whole[: whole.index(stop)] and found.finish_reason == "stop"


def test_detail_low_is_half_the_budget(client: Client, opened: Opened) -> None:
    half = generate(opened, 6, budget="4")
    low = ask(client, chat(*REQUESTS[6], detail="low"))
    assert low.usage.visual_tokens["stage1"] == half.visual_tokens.stage1 < generate(opened, 6).visual_tokens.stage1
    assert low.choices[0].message.content == half.text
    for detail in ("high", "auto"):
        usual = ask(client, chat(*REQUESTS[6], detail=detail))
        assert usual.usage.visual_tokens["stage1"] == generate(opened, 6).visual_tokens.stage1
    said = ask(client, chat(*REQUESTS[6], detail="low"), extra_body={"budget": "8"})
    assert said.usage.visual_tokens["stage1"] == generate(opened, 6).visual_tokens.stage1


def test_detail_low_of_a_bundle_for_counts(start: Start, opened: Opened) -> None:
    vlm = opened("qwen-reindex")
    found = ask(start("qwen-reindex").client(), chat("What?", SQUARE, detail="low"))
    assert found.choices[0].message.content == vlm.generate("What?", SQUARE, keep=(10, 4)).text


def test_a_chat_of_several_turns(client: Client, opened: Opened) -> None:
    """Pictures stay where they were sent; developer is another word for system."""
    turns = [
        {"role": "system", "content": "Answer briefly."},
        *chat("What is on the table?", WIDE),
        {"role": "assistant", "content": "A cat."},
        *chat("And here?", SQUARE),
    ]
    image = {"type": "image"}
    messages: Any = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [image, {"type": "text", "text": "What is on the table?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [image, {"type": "text", "text": "And here?"}]},
    ]
    wanted = opened("llava").generate(messages, [WIDE, SQUARE])
    assert ask(client, turns).choices[0].message.content == wanted.text
    turns[0] = {"role": "developer", "content": [{"type": "text", "text": "Answer briefly."}], "name": "me"}
    assert ask(client, turns).choices[0].message.content == wanted.text


def test_plain_completions(client: Client, opened: Opened) -> None:
    """The prompt is all that the model gets: no chat template."""
    vlm = opened("llava")
    prompt = vlm.tokenizer.render("Describe the text.", 0)
    wanted = vlm.generate("Describe the text.")
    found = client.completions.create(model=MODEL, prompt=prompt)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (wanted.text, wanted.finish_reason)
    assert found.usage is not None and found.usage.prompt_tokens == wanted.prompt_tokens
    assert client.completions.create(model=MODEL, prompt="Describe the text.").usage.prompt_tokens < wanted.prompt_tokens  # type: ignore[union-attr]
    chunks = list(client.completions.create(model=MODEL, prompt=prompt, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == wanted.text
    assert chunks[-1].choices[0].finish_reason == wanted.finish_reason


def test_models(client: Client) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
