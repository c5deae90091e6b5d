"""Log-probabilities: of given logits against torch, of whole answers against transformers, of pieces against the result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export import Pipeline
from sts_export.errors import RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.next_token import logprobs as module
from sts_export.generation.next_token.logprobs import TokenLogprobs, token_logprobs
from sts_export.generation.scheduling.answers import Event, Finished, Piece
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.mixed_requests import REQUESTS, Opened
from tests.support.parity import Transformers, pictures

torch.set_num_threads(1)
TOKENS = 12


@given(
    logits=st.lists(st.sampled_from([-3.0, 0.0, 0.5, 2.0, 60.0]) | st.floats(-90, 90, width=32), min_size=1, max_size=40),
    most=st.integers(0, 20),
    data=st.data(),
)
@settings(deadline=None, derandomize=True)
def test_they_are_those_of_torch(logits: list[float], most: int, data: st.DataObject) -> None:
    """Also where many logits are equal: the lower id goes first."""
    token = data.draw(st.integers(0, len(logits) - 1))
    found = token_logprobs(np.array(logits, np.float32), token, most)
    expected = torch.log_softmax(torch.tensor(logits, dtype=torch.float32).double(), -1)
    order = torch.sort(torch.tensor(logits), descending=True, stable=True).indices[:most].tolist()
    assert found.token_id == token and [index for index, _ in found.top] == order
    np.testing.assert_allclose(found.logprob, expected[token].item(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose([value for _, value in found.top], expected[order].numpy(), rtol=1e-12, atol=1e-12)
    assert all(isinstance(index, int) and isinstance(value, float) for index, value in found.top)


def test_logits_of_half_precision() -> None:
    """The sum is taken in float64: in float16 it would be rounded to three digits."""
    found = token_logprobs(np.zeros(3000, np.float16), 7, 2)
    assert found.top == ((0, found.logprob), (1, found.logprob)) and math.isclose(found.logprob, -math.log(3000))


@pytest.fixture(scope="module")
def unpruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Transformers]:
    folder, spec = tmp_path_factory.mktemp("logprobs"), RandomLlava(seed=7, layers=2, vision_layers=2)
    checkpoint = write_random_llava(folder / "checkpoint", spec)
    request = ExportRequest(
        str(checkpoint), folder / "bundle", budget="100%", weights="link", max_prompt_tokens=80, max_new_tokens=TOKENS
    )
    return Pipeline(export(request).folder, threads=1), Transformers(checkpoint, spec)


def test_answers_have_those_of_transformers(unpruned: tuple[Pipeline, Transformers]) -> None:
    vlm, theirs = unpruned
    for place, text in enumerate(("What is on the table?", "Where?")):
        images = pictures(place, [(84, 84)])
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        tokens, logits = theirs.generate(messages, images, TOKENS)
        expected = torch.log_softmax(logits.double(), -1)
        found = vlm.generate(messages, images, max_new_tokens=TOKENS, ignore_eos=True, logprobs=5)
        assert found.token_ids == tokens and found.logprobs is not None and len(found.logprobs) == TOKENS
        for step, one in enumerate(found.logprobs):
            ids, values = zip(*one.top, strict=True)
            assert one.token_id == tokens[step] and len(set(ids)) == 5
            assert one.top[0] == (one.token_id, one.logprob)  # greedy
            np.testing.assert_allclose(one.logprob, expected[step, one.token_id].item(), atol=2e-3)
            np.testing.assert_allclose(values, expected[step, list(ids)].numpy(), atol=2e-3)
            np.testing.assert_allclose(values, expected[step].topk(5).values.numpy(), atol=2e-3)


def test_settings_do_not_change_what_is_reported(unpruned: tuple[Pipeline, Transformers]) -> None:
    """Of every token that was drawn, its probability before penalties, biases, exclusions and filters."""
    vlm, _ = unpruned
    image = pictures(1, [(84, 84)])
    settings = {
        "sampling": SamplingConfig(temperature=3.0, top_k=40, seed=4),
        "logits": LogitsConfig(repetition_penalty=1.7, logit_bias={70: 30.0}, suppress_tokens=[80, 81]),
    }
    found = vlm.generate("Where?", image, max_new_tokens=6, ignore_eos=True, logprobs=20, **settings)
    logits = vlm.score("Where?", image, found.token_ids)
    expected = torch.log_softmax(torch.tensor(logits).double(), -1)
    assert found.logprobs is not None and found.token_ids.count(70) > 0
    for step, one in enumerate(found.logprobs):
        np.testing.assert_allclose(one.logprob, expected[step, found.token_ids[step]].item(), atol=1e-4)
        np.testing.assert_allclose([v for _, v in one.top], expected[step].topk(20).values.numpy(), atol=1e-4)
    # A token far down the list was chosen: the list need not hold it.
    assert any(one.token_id not in dict(one.top) for one in found.logprobs)


def test_nothing_is_computed_for_who_does_not_ask(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = module.most_likely

    def counted(scores: NDArray[np.float64], most: int) -> list[int]:
        calls.append(most)
        return real(scores, most)

    monkeypatch.setattr(module, "most_likely", counted)
    vlm = opened("llava")
    plain = vlm.generate("Where?", ignore_eos=True, max_new_tokens=4)
    assert plain.logprobs is None and plain.to_json()["logprobs"] is None and not calls
    own = vlm.generate("Where?", ignore_eos=True, max_new_tokens=4, logprobs=0)
    assert own.token_ids == plain.token_ids and calls == [0] * 4
    assert own.logprobs is not None and [one.top for one in own.logprobs] == [()] * 4


def test_a_batch_has_those_of_the_requests_alone(opened: Opened) -> None:
    """Up to what sums in another order differ by."""
    vlm = opened("qwen")
    prompts, images = [list(column) for column in zip(*REQUESTS[:4], strict=True)]
    together = vlm.generate(prompts, images, ignore_eos=True, logprobs=2)
    for (prompt, image), found in zip(REQUESTS[:4], together, strict=True):
        alone = vlm.generate(prompt, () if image is None else image, ignore_eos=True, logprobs=2)
        assert found.token_ids == alone.token_ids and found.logprobs is not None and alone.logprobs is not None
        for one, other in zip(found.logprobs, alone.logprobs, strict=True):
            np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-4)
            np.testing.assert_allclose([v for _, v in one.top], [v for _, v in other.top], atol=1e-4)


def test_as_json(opened: Opened) -> None:
    result = opened("llava").generate("Where?", max_new_tokens=3, ignore_eos=True, logprobs=2)
    printed = json.loads(json.dumps(result.to_json()))
    assert printed == result.to_json() and result.logprobs is not None
    one = result.logprobs[0]
    assert printed["logprobs"][0] == {"token_id": one.token_id, "logprob": one.logprob, "top": [list(p) for p in one.top]}


@pytest.mark.parametrize("wrong", [-1, 21, True, 1.0, "5", [2]])
def test_other_numbers_are_refused(opened: Opened, wrong: Any) -> None:
    with pytest.raises(RequestError, match=r"^logprobs must be a whole number from 0 to 20, not .*; leave it out for none$"):
        opened("llava").stream("Where?", logprobs=wrong)
    assert opened("llava").prepare("Where?", logprobs=np.int64(3)).logprobs == 3  # type: ignore[arg-type]


def events_of(vlm: Pipeline, **settings: Any) -> list[Event]:
    events: list[Event] = []
    with Scheduler(vlm, slots=2) as scheduler:
        scheduler.submit(vlm.prepare(**settings), events.append)
        scheduler.close()
    return events


def joined(events: list[Event]) -> tuple[list[TokenLogprobs], Finished]:
    """As a reader puts them together: those of the pieces, and those that the last piece did not count."""
    *pieces, end = events
    assert isinstance(end, Finished) and end.result.logprobs is not None
    found: list[TokenLogprobs] = []
    counted = 0
    for piece in pieces:
        assert isinstance(piece, Piece) and piece.text and len(piece.logprobs) == piece.tokens - counted
        found, counted = [*found, *piece.logprobs], piece.tokens
    return [*found, *end.result.logprobs[counted:]], end


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_pieces_bring_them_once_and_in_order(opened: Opened, name: str) -> None:
    """Random tokens are often parts of characters, and a stop string may begin anywhere: pieces come late, or not at all."""
    vlm, held_back, left = opened(name), 0, 0
    for prompt, images in REQUESTS:
        asked = {"prompt": prompt, "images": images, "sampling": SamplingConfig(temperature=1.5, seed=len(str(prompt)))}
        text = vlm.generate(**asked, ignore_eos=True).text
        for stop in ((), (text[4:7],), (text[-1] * 3, text[2:3] + "never")):
            events = events_of(vlm, **asked, ignore_eos=True, stop=stop, logprobs=1)
            found, end = joined(events)
            assert found == end.result.logprobs and [one.token_id for one in found] == end.result.token_ids
            pieces = [event for event in events if isinstance(event, Piece)]
            assert "".join(piece.text for piece in pieces) == end.result.text
            held_back += sum(len(piece.logprobs) > 1 for piece in pieces)
            left += not pieces or pieces[-1].tokens < len(found)
    assert held_back > 3 and left > 0


def test_pieces_without_them(opened: Opened) -> None:
    *pieces, _ = events_of(opened("llava"), prompt="Where?", ignore_eos=True)
    assert pieces and all(isinstance(piece, Piece) and piece.logprobs == () for piece in pieces)


def test_an_end_token_has_its_own(opened: Opened, tmp_path: Path) -> None:
    """It brings no text: the reader finds it in the result."""
    vlm = opened("llava")
    (end,) = vlm.tokenizer.eos_token_ids
    found, finished = joined(events_of(vlm, prompt="Where?", logits=LogitsConfig(logit_bias={end: 100.0}), logprobs=0))
    assert finished.result.text == "" and [one.token_id for one in found] == [end]
