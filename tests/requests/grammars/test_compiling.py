"""Grammars against json, jsonschema and re: whatever allowed tokens are chosen, the text is valid where it may end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from sts_export.errors import RequestError
from sts_export.requests.grammars.compiling import CompiledGrammar, GrammarCompiler
from sts_export.requests.grammars.grammar import Grammar
from sts_export.requests.token_bytes import TokenBytes
from tests.support.small_tokenizers import TOKENIZERS

END = 2  # </s> of the one, <image> of the other: special tokens
MADE: dict[str, Tokenizer] = {name: make() for name, make in TOKENIZERS.items()}
BYTES = {name: TokenBytes(tokenizer) for name, tokenizer in MADE.items()}
MORE = 7  # rows of a model that its tokenizer has no tokens for


def compiler(name: str, ends: tuple[int, ...] = (END,)) -> GrammarCompiler:
    return GrammarCompiler(MADE[name], MADE[name].get_vocab_size() + MORE, ends)


COMPILERS = {name: compiler(name) for name in MADE}

VALUES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.text(max_size=4), min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.tuples(st.integers(-300, 300), st.integers(0, 500)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": sum(pair)}
    ),
    st.integers(0, 5).map(lambda most: {"type": "string", "maxLength": most}),
    st.just({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}),
)
FINITE = st.dictionaries(st.sampled_from(["a", "the cat", "é", "漢", 'quo"ted', "b\n"]), VALUES, max_size=3).map(
    lambda properties: {
        "type": "object",
        "properties": properties,
        "required": sorted(properties)[::2],
        "additionalProperties": False,
    }
)


def walk(name: str, grammar: CompiledGrammar, seed: int, valid: Callable[[str], bool], most: int = 2000) -> str | None:
    """The text of random allowed tokens up to an end; None where it did not end.

    An end is allowed exactly where the text is valid.
    """
    random, state, text = np.random.default_rng(seed), grammar.begun(), b""
    special = {index for index, token in MADE[name].get_added_tokens_decoder().items() if token.special}
    for step in range(most):
        allowed = set(np.flatnonzero(state.allowed).tolist())
        assert allowed & special <= {END} and max(allowed) < MADE[name].get_vocab_size()
        assert (END in allowed) == (is_text(text) and valid(text.decode())), text
        assert state.is_complete == (allowed <= {END})
        if state.is_complete:
            return text.decode()
        token = int(random.choice(sorted(allowed)))
        if token == END:
            return text.decode()
        text += BYTES[name].of(token, first=step == 0)
        state.append(token)
    return None


def is_text(found: bytes) -> bool:
    try:
        return bool(found.decode()) or not found
    except UnicodeDecodeError:
        return False


def valid_by(schema: dict[str, Any]) -> Callable[[str], bool]:
    def valid(text: str) -> bool:
        try:
            value = json.loads(text)
        except ValueError:
            return False
        return bool(jsonschema.Draft202012Validator(schema).is_valid(value))

    return valid


@pytest.mark.parametrize("name", TOKENIZERS)
@given(schema=FINITE, seed=st.integers(0, 2**32))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_finite_schemas_always_end_in_valid_json(name: str, schema: dict[str, Any], seed: int) -> None:
    valid = valid_by(schema)
    text = walk(name, COMPILERS[name].compile(Grammar.json_schema(schema)), seed, valid)
    assert text is not None and valid(text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_json_object(name: str) -> None:
    grammar = COMPILERS[name].compile(Grammar.json_object())
    texts = [walk(name, grammar, seed, valid_by({"type": "object"}), 300) for seed in range(12)]
    found = [json.loads(text) for text in texts if text is not None]
    assert found and all(isinstance(one, dict) for one in found)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("pattern", ["yes|no", "[a-c]{2,4}(the cat)?", "(é|漢)+x", r"\d{1,3}(\.\d)?"])
def test_regular_expressions(name: str, pattern: str) -> None:
    grammar = COMPILERS[name].compile(Grammar.regex(pattern))
    for seed in range(8):
        text = walk(name, grammar, seed, lambda text: re.fullmatch(pattern, text) is not None)
        assert text is not None and re.fullmatch(pattern, text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_spaces_are_as_people_write_them_and_never_without_end(name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "required": ["a"]}
    grammar = COMPILERS[name].compile(Grammar.json_schema({**schema, "x-guidance": {"whitespace_pattern": " +"}}))
    value = {"a": [1, 2]}
    written = [json.dumps(value), json.dumps(value, indent=2), json.dumps(value, separators=(",", ":"))]
    assert [follows(name, grammar, text) for text in written] == [True] * 3
    assert not follows(name, grammar, '{  "a": [1]}') and not follows(name, grammar, '{\n\n"a": [1]}')
    assert not follows(name, grammar, ' {"a": [1]}') and not follows(name, grammar, '{"b": [1], "a": [1]}')


def follows(name: str, grammar: CompiledGrammar, text: str) -> bool:
    """Whether some allowed tokens make the text; where only one text can follow, only the tokenizer's own do."""
    state, rest = grammar.begun(), text.encode()
    while rest:
        spelled = {int(token): BYTES[name].of(int(token)) for token in np.flatnonzero(state.allowed) if token != END}
        fitting = [token for token, own in spelled.items() if rest.startswith(own)]
        if not fitting:
            return False
        token = max(fitting, key=lambda one: len(spelled[one]))
        rest = rest[len(spelled[token]) :]
        state.append(token)
    return bool(state.allowed[END])


def test_no_end_token_or_several() -> None:
    """One that is text ends the answer, and so is not a part of it."""
    name = "byte-level"
    x = MADE[name].get_vocab()["x"]
    grammar = Grammar.regex("a{1,2}x?y?")
    for ends in ((), (END,), (END, x, 10**6)):
        state = compiler(name, ends).compile(grammar).begun()
        real = [end for end in ends if end < 10**6]
        assert not state.allowed[real].any()
        state.append(MADE[name].get_vocab()["a"])
        assert state.allowed[real].all() and not state.is_complete
        state.append(MADE[name].get_vocab()["y"])
        assert set(np.flatnonzero(state.allowed)) == set(real) and state.is_complete


def test_answers_from_one_grammar_are_apart() -> None:
    grammar = COMPILERS["byte-level"].compile(Grammar.regex("ab|cd"))
    one, other = grammar.begun(), grammar.begun()
    vocabulary = MADE["byte-level"].get_vocab()
    one.append(vocabulary["a"])
    assert not one.allowed[vocabulary["c"]] and other.allowed[vocabulary["c"]]
    other.append(vocabulary["c"])
    assert one.allowed[vocabulary["b"]] and other.allowed[vocabulary["d"]] and grammar.begun().allowed[vocabulary["a"]]


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


PRODUCT = {"allOf": [{"anyOf": [{"minLength": 3 * i + k, "type": ["string", "integer"]} for k in range(3)]} for i in range(14)]}
WRONG: dict[str, tuple[Grammar, str]] = {
    "type": (Grammar.json_schema({"type": "nothing"}), "Invalid type: nothing"),
    "keyword": (Grammar.json_schema({"not": {"type": "string"}}), "Unimplemented keys"),
    "keyword-made-lenient": (Grammar.json_schema({"not": {}, "x-guidance": {"lenient": True}}), "Unimplemented keys"),
    "reference": (Grammar.json_schema({"$ref": "https://example.org/schema"}), "does not fetch resources"),
    "unsatisfiable": (Grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 2}), "Unsatisfiable schema"),
    "circle": (Grammar.json_schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "no text fits it"),
    "depth": (Grammar.json_schema(deep(300)), "recursion limit exceeded"),
    "pattern": (Grammar.json_schema({"type": "string", "pattern": "("}), "unclosed group"),
    "look-ahead": (Grammar.json_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
    "explosion": (Grammar.json_schema({"type": "string", "pattern": "^a{50000}$"}), "bytes that are always the same"),
    "product": (Grammar.json_schema(PRODUCT), "schema too large"),
    "regex": (Grammar.regex("a("), "unclosed group"),
    "regex-too-large": (Grammar.regex("a{50000}"), "bytes that are always the same"),
    "regex-empty": (Grammar.regex(""), "allows no text"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("grammar", "why"), WRONG.values(), ids=WRONG.keys())
def test_grammars_that_cannot_be(name: str, grammar: Grammar, why: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError) as caught:
        COMPILERS[name].compile(grammar)
    message = str(caught.value)
    assert message.startswith("the grammar of the answer ") and why in message and "\n" not in message
    assert message.endswith("correct it") and len(message) < 300
    assert capfd.readouterr() == ("", "")


def test_a_limit_that_is_met_in_the_middle() -> None:
    """Many properties may come next, each a row of the parser; the first token is still allowed."""
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string", "pattern": "[a-z]x"} for n in range(1000)}}
    with pytest.raises(RequestError, match="items; max is 2000"):
        state = COMPILERS["byte-level"].compile(Grammar.json_schema(schema)).begun()
        state.append(MADE["byte-level"].get_vocab()["{"])


def test_what_is_no_grammar() -> None:
    with pytest.raises(RequestError, match=r"^grammar is a Grammar, not dict; make one with Grammar.json_schema$"):
        COMPILERS["llama"].compile({"type": "object"})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="ignore_eos that it does not; leave one of them out"):
        COMPILERS["llama"].of_request(Grammar.json_object(), ignore_eos=True)
    assert COMPILERS["llama"].of_request(None, ignore_eos=True) is None


def test_without_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"^JSON schemas .* need llguidance: pip install 'sts-export\[serve\]'$"):
        compiler("llama").compile(Grammar.json_object())


def test_a_tokenizer_of_another_kind() -> None:
    tokenizer = Tokenizer(models.WordPiece({"the": 0, "##se": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(RequestError, match=r"^grammars are not possible with this model's tokenizer \(.*\); ask without one$"):
        GrammarCompiler(tokenizer, 3, ()).compile(Grammar.json_object())
