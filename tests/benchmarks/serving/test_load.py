"""Clients of a server whose answers are known, and what they count."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from benchmarks.serving.__main__ import soaked
from benchmarks.serving.alone import asked_alone
from benchmarks.serving.clients import crowd
from benchmarks.serving.contenders import Contender
from benchmarks.serving.questions import Asked, Question, budgets_of, make_questions
from tests.benchmarks.serving.echo import Echo, Serve

PICTURE = make_questions(1, 4)[0].picture
TAG = "<ov_genai_image_0>"


def echoed(tokens: int, prompt: str = "a") -> Asked:
    return Asked(prompt, PICTURE, tokens)


def test_a_question_asked_alone_tells_its_answer_and_its_pieces(serve: Serve) -> None:
    address = serve(Echo())
    found = asked_alone(address, "m", [echoed(30), echoed(19, "é")])
    assert [one.answer for one in found] == [(f"{TAG}a" * 2)[:30], f"{TAG}\N{REPLACEMENT CHARACTER}"]
    assert [(one.tokens, one.pieces) for one in found] == [(30, 30), (19, 19)]
    assert asked_alone(address, "m", [echoed(5)], ["right"])[0].answer == "right"


def test_a_server_that_ends_early_is_no_contender(serve: Serve) -> None:
    class Short(Echo):
        def add(self, ask):  # type: ignore[no-untyped-def]
            return super().add(replace(ask, tokens=ask.tokens - 1))

    with pytest.raises(RuntimeError, match=r"asks for 5 tokens, and .* made 4"):
        asked_alone(serve(Short()), "m", [echoed(5)])


def test_right_wrong_and_given_up_answers_count_the_tokens_that_came(serve: Serve) -> None:
    address = serve(Echo())
    question, *_ = asked_alone(address, "m", [echoed(10)])
    seen = crowd(address, [question], 1, each=3, cancel=3)
    assert (seen.right, seen.wrong, seen.cancelled, seen.failed, seen.tokens) == (2, 0, 1, [], 10 + 10 + 5)
    assert len(seen.first) == 3 and len(seen.gaps) == 9 + 9 + 4
    seen = crowd(address, [replace(question, answer="other")], 2, each=2)
    assert (seen.right, seen.wrong, seen.tokens) == (0, 4, 40)


def test_pieces_of_several_tokens_count_as_these(serve: Serve) -> None:
    """Two bytes a character: half of the pieces are half of the tokens, whatever a server's pieces are."""
    address = serve(Echo())
    body = {"messages": [{"role": "user", "content": "éé"}], "max_tokens": 12, "stream": True}
    seen = crowd(address, [Question(body, "é" * 6, 12, 6)], 1, each=2, cancel=2)
    assert (seen.right, seen.cancelled, seen.tokens) == (1, 1, 12 + 6)


@pytest.mark.parametrize("pieces, cancelled_at", [(1, 1), (2, 1), (3, 1), (0, 1), (6, 3)])
def test_short_answers_are_given_up_too(serve: Serve, pieces: int, cancelled_at: int) -> None:
    """At the first piece, where there are few of them among many tokens, as of a model that ends its answers soon."""
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 12, "stream": True}
    seen = crowd(serve(Echo()), [Question(body, "a" * 12, 12, pieces)], 1, each=2, cancel=2)
    assert (seen.right, seen.cancelled, seen.tokens) == (1, 1, 12 + 12 * cancelled_at // max(1, pieces))


def test_a_soak_tells_how_its_requests_ended(serve: Serve) -> None:
    class Refusing(Echo):
        def add(self, ask):  # type: ignore[no-untyped-def]
            if len(self.requests) == 100:
                raise RuntimeError("no more")
            return super().add(ask)

    address = serve(Refusing())
    questions = asked_alone(address, "m", [echoed(6), echoed(9)])
    found = soaked([Contender("echo", os.getpid(), address, questions)], 160)["echo"]
    assert all(one["pss_mb"] > 0 for one in found)
    assert [one["requests"] for one in found] == list(range(16, 161, 16)) and all(one["rss_mb"] > 0 for one in found)
    ends = {name: sum(one[name] for one in found) for name in ("right", "wrong", "cancelled", "failed")}
    assert sum(ends.values()) == 160 and ends["wrong"] == 0 and ends["cancelled"] > 0
    assert ends["failed"] == 160 - (100 - len(questions))


def test_what_is_refused_or_ends_otherwise_is_a_failure(serve: Serve) -> None:
    class Stopping(Echo):
        def add(self, ask):  # type: ignore[no-untyped-def]
            request = super().add(ask)
            request.ended = "stop"
            return request

    address = serve(Stopping())
    said = [{"messages": [{"role": "user", "content": text}], "max_tokens": 4, "stream": True} for text in ("refuse", "a")]
    seen = crowd(address, [Question(body, "aaaa", 4, 4) for body in said], 1, each=2)
    assert (seen.right, seen.wrong, seen.tokens) == (0, 0, 0)
    assert [line.partition(":")[0] for line in seen.failed] == ["ValueError"] * 2
    assert "too long" in seen.failed[0] and "ended with 'stop'" in seen.failed[1]


def test_contenders_are_asked_the_same_whatever_their_budgets() -> None:
    own, mixed = make_questions(12, 48), make_questions(12, 48, ["64", "32"])
    assert [replace(asked, budget=None) for asked in mixed] == own
    assert {asked.budget for asked in mixed} == {"64", "32"} and all(12 <= asked.tokens <= 48 for asked in own)
    assert "budget" not in own[0].body("m") and mixed[0].body("m")["budget"] == mixed[0].budget


def test_budgets_of_requests_are_the_export_s_and_half_of_it() -> None:
    assert budgets_of("64") == [None, "32"] and budgets_of("20%") == [None] and budgets_of(None) == [None]
