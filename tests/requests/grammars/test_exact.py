"""Schemas with large numbers: refused, or every answer keeps to them, by Python's own integers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.errors import RequestError
from sts_export.requests.grammars.compiling import CompiledGrammar, GrammarCompiler
from sts_export.requests.grammars.exact import check_numbers
from sts_export.requests.grammars.grammar import Grammar
from tests.requests.grammars.test_compiling import BYTES, COMPILERS, END, walk

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'sts-export[serve]'")
COMPILER: GrammarCompiler = COMPILERS["byte-level"]
LARGE = st.one_of(
    st.builds(lambda power, more: 2**power + more, st.integers(50, 70), st.integers(-3, 3)),
    st.sampled_from([10**17, 10**18, 10**19, 10**25, 10**25 + 7, 10**300, 10**400]),
).flatmap(lambda number: st.sampled_from([number, -number]))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 10**25, "maximum": 10**25 + 5},
        {"type": "integer", "minimum": 2**53 + 1},
        {"type": "integer", "maximum": 2**53 + 3},
        {"type": "integer", "maximum": -(10**25)},
        {"type": "integer", "exclusiveMinimum": 1e30, "maximum": 1e31},
        {"minimum": 10**400},
        {"const": 2**63},
        {"enum": ["a", {"b": [2**53 + 1]}]},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer", "minimum": 10**25, "maximum": 10**26}]}}},
        {"$defs": {"const": {"type": "integer", "multipleOf": 2**53 + 1}}, "$ref": "#/$defs/const"},
    ],
)
def test_numbers_that_would_become_others(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"the JSON schema has .* which answers cannot keep to; use") as error:
        COMPILER.compile(Grammar.json_schema(schema))
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        {"type": "integer", "minimum": -(2**62), "maximum": 2**62},
        {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
        {"type": "number", "minimum": 0.1, "maximum": 1e10},
        {"const": 10**18},
        {"type": "boolean", "default": 2**53 + 1, "examples": [{"minimum": 10**25}]},
        {"type": "object", "properties": {"minimum": {"type": "integer"}, "const": {"maximum": 2**50}}},
        {"enum": [True, 1, "a"]},
    ],
)
def test_numbers_that_may_stand(schema: dict[str, Any]) -> None:
    COMPILER.compile(Grammar.json_schema(schema))


@pytest.mark.parametrize("exclusive", [False, True])
def test_answers_keep_to_bounds(*, exclusive: bool) -> None:
    kept, names = 0, ("exclusiveMinimum", "exclusiveMaximum") if exclusive else ("minimum", "maximum")

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(first=LARGE, second=LARGE, seed=st.integers(0, 9))
    def keep(first: int, second: int, seed: int) -> None:
        nonlocal kept
        least, most = sorted([first, second])
        try:
            grammar = COMPILER.compile(Grammar.json_schema({"type": "integer", names[0]: least, names[1]: most}))
        except RequestError:
            return
        value = json.loads(an_answer(grammar, seed))
        assert least <= value <= most and not (exclusive and value in (least, most))
        kept += 1

    keep()
    assert kept


def an_answer(grammar: CompiledGrammar, seed: int) -> bytes:
    """Of random tokens."""
    random, state, text = np.random.default_rng(seed), grammar.begun(), b""
    while not state.is_complete:
        token = int(random.choice(np.flatnonzero(state.allowed)))
        if token == END:
            break
        text += BYTES["byte-level"].of(token, first=not text)
        state.append(token)
    return text


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(number=LARGE)
def test_constants(number: int) -> None:
    try:
        grammar = COMPILER.compile(Grammar.json_schema({"const": number}))
    except RequestError:
        return
    text = walk("byte-level", grammar, 0, lambda text: text == str(number))
    assert text == str(number)


def test_deep_schemas() -> None:
    schema: Any = {"minimum": 10**25}
    for _ in range(100_000):
        schema = {"not": schema}
    with pytest.raises(RequestError, match="minimum"):
        check_numbers(schema)
