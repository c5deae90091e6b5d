"""Triton as a contender: what it is asked, its repository, and answers through a client that is not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from benchmarks.serving import __main__ as command
from benchmarks.serving.clients import crowd
from benchmarks.serving.contenders import TRITON, Contender
from benchmarks.serving.questions import Asked, Question, make_questions
from benchmarks.serving.streams import Told
from benchmarks.serving.triton.asking import GRPC, tensors
from benchmarks.serving.triton.repository import repository
from sts_export.exporting.exporter import export
from sts_export.exporting.plan import ExportRequest
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from sts_export.triton.tensors import INPUTS

Answer = tuple[dict[str, Any] | None, bool]  # outputs of a response, or none: an error; whether it is the last one


class Result:
    def __init__(self, outputs: dict[str, Any], is_last: bool) -> None:
        self._outputs, self._is_last = outputs, is_last

    def as_numpy(self, name: str) -> Any:
        return np.array([[self._outputs[name]]]) if name in self._outputs else None

    def get_response(self) -> Any:
        return SimpleNamespace(parameters={"triton_final_response": SimpleNamespace(bool_param=self._is_last)})


class Client:
    """In place of tritonclient's: answers every question with the same responses."""

    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    cancelled: ClassVar[list[bool]] = []
    answers: ClassVar[list[Answer]] = []

    def __init__(self, address: str) -> None:
        assert address == "somewhere"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start_stream(self, tell: Callable[[Any, Any], None]) -> None:
        self._tell = tell

    def async_stream_infer(self, model: str, inputs: list[Input], *, enable_empty_final_response: bool) -> None:
        assert enable_empty_final_response
        self.asked.append((model, {one.name: (one.kind, one.array.tolist()) for one in inputs}))
        for outputs, is_last in self.answers:
            self._tell(*((None, "not so many") if outputs is None else (Result(outputs, is_last), None)))

    def stop_stream(self, cancel_requests: bool) -> None:
        self.cancelled.append(cancel_requests)


class Input:
    def __init__(self, name: str, shape: list[int], kind: str) -> None:
        self.name, self.shape, self.kind = name, shape, kind

    def set_data_from_numpy(self, array: Any) -> None:
        assert list(array.shape) == self.shape
        self.array = array


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    Client.asked, Client.cancelled, Client.answers = [], [], []
    module: Any = SimpleNamespace(InferenceServerClient=Client, InferInput=Input)
    monkeypatch.setitem(sys.modules, "tritonclient", SimpleNamespace(grpc=module))
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", module)
    return Client


def said(text: str) -> Answer:
    return {"text_output": text.encode(), "num_output_tokens": 1}, False


ABC = [said("a"), said("b"), said("c"), ({"text_output": b"", "num_output_tokens": 1, "finish_reason": b"length"}, True)]
ASKED = Asked("Where?", b"file", 4, "32")


def test_a_question_is_the_model_s_own_tensors() -> None:
    asked = make_questions(3, 48, ["64", "32"])[0]
    inputs = tensors(asked, "m", False)["inputs"]
    assert set(inputs) <= {tensor.name for tensor in INPUTS}
    assert (inputs["text_input"].decode(), inputs["image"], inputs["max_tokens"]) == (asked.prompt, asked.picture, asked.tokens)
    assert "budget" not in tensors(Asked("a", b"", 3), "m", False)["inputs"]
    assert tensors(asked, "m", True) == tensors(asked, "m", False)


def test_an_answer_is_its_pieces_its_end_and_its_tokens(client: type[Client]) -> None:
    client.answers = ABC
    with GRPC.connect("somewhere") as ask:
        found = list(ask(tensors(ASKED, "m", False)))
    assert found == [Told("a", None, 1), Told("b", None, 2), Told("c", None, 3), Told("", "length", 4)]
    (model, inputs), *_ = client.asked
    assert model == "m" and inputs["image"] == ("BYTES", [[b"file"]]) and inputs["budget"] == ("BYTES", [[b"32"]])
    assert inputs["max_tokens"] == ("INT32", [[4]]) and inputs["stream"] == ("BOOL", [[True]])
    assert client.cancelled == [False]


def test_a_stream_is_cancelled_for_an_answer_that_is_given_up_and_no_other(client: type[Client]) -> None:
    client.answers = ABC
    question = Question(tensors(ASKED, "m", False), "abc", 4, 3)
    seen = crowd("somewhere", [question], 1, each=3, cancel=3, transport=GRPC)
    assert (seen.right, seen.wrong, seen.cancelled, seen.failed) == (2, 0, 1, [])
    assert client.cancelled == [False, False, True] and seen.tokens == 4 + 4 + 4 // 3


def test_a_refusal_is_a_failure_and_the_next_question_is_asked(client: type[Client]) -> None:
    client.answers = [(None, True)]
    seen = crowd("somewhere", [Question(tensors(ASKED, "m", False), "abc", 4, 3)], 1, each=2, transport=GRPC)
    assert seen.failed == ["ValueError: the server refuses, or the answer broke off: not so many"] * 2
    assert client.cancelled == [False, False]


def test_a_soak_asks_every_contender_in_turn(client: type[Client]) -> None:
    client.answers = ABC
    question = Question(tensors(ASKED, "m", False), "abc", 4, 3)
    pair = [Contender(name, os.getpid(), "somewhere", [question], GRPC) for name in ("a", TRITON)]
    found = command.soaked(pair, 160, give_up=2)
    assert list(found) == ["a", TRITON]
    for its in found.values():
        assert sum(one["right"] for one in its) == sum(one["cancelled"] for one in its) == 80
        assert its[-1]["requests"] == 160


def test_triton_s_repository_has_the_settings_of_serve(tmp_path: Path) -> None:
    checkpoint = write_random_llava(tmp_path / "checkpoint", RandomLlava(layers=2, vision_layers=2))
    bundle = export(ExportRequest(str(checkpoint), tmp_path / "bundle", "12", max_new_tokens=20)).folder
    usual = str(256 << 20)
    for reuse, cache, prefixes in (("none", "0", "false"), ("pictures", usual, "false"), ("all", usual, "true")):
        folder = repository(bundle, tmp_path / reuse, "m", 3, reuse=reuse)
        text = (folder / "m" / "config.pbtxt").read_text()
        for key, value in (("slots", "3"), ("feature_cache", cache), ("reuse_prefixes", prefixes)):
            assert f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' in text
        assert (folder / "m" / "1" / "bundle").resolve() == bundle.resolve()


def test_without_a_server_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--triton"])
    monkeypatch.setattr(command, "missing", lambda: "no Triton server; run scripts/triton_server/fetch")
    with pytest.raises(SystemExit, match=r"^--triton: no Triton server; run scripts/triton_server/fetch$"):
        command.main()
