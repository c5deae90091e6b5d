"""No text has fewer tokens than the bound says, and long ones are refused untokenized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from sts_export import Pipeline
from sts_export.errors import PromptError
from sts_export.requests.messages import RawText
from sts_export.requests.tokenizing.text_bounds import UNKNOWN, TextBound, text_bound
from tests.support.small_tokenizers import byte_level, llama_like


def composing() -> Tokenizer:
    made = byte_level()
    made.normalizer = normalizers.NFC()
    return made


def with_spaces_for_marks() -> Tokenizer:
    made = llama_like()
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def swallowing() -> Tokenizer:
    made = byte_level()
    made.add_special_tokens([AddedToken("<|end|>", special=True, lstrip=True, rstrip=True)])
    return made


def without_spaces() -> Tokenizer:
    made = llama_like()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return made


def joining() -> Tokenizer:
    made = llama_like()
    made.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    return made


def dropping() -> Tokenizer:
    """Characters that it does not know are no tokens."""
    return Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))


def of_words() -> Tokenizer:
    return Tokenizer(models.WordLevel(vocab={"a": 0, "<unk>": 1}, unk_token="<unk>"))


def fusing() -> Tokenizer:
    return Tokenizer(models.BPE(vocab={"a": 0, "<unk>": 1}, merges=[], unk_token="<unk>", fuse_unk=True))


CERTAIN = [byte_level, llama_like, composing, with_spaces_for_marks, swallowing]
UNCERTAIN = [without_spaces, joining, dropping, of_words, fusing]
TEXTS = st.one_of(st.text(max_size=200), st.text(st.sampled_from("a the\n\u0301\u0323e\u1ea1 <|end|>"), max_size=200))


@pytest.mark.parametrize("make", CERTAIN)
def test_no_text_has_fewer_tokens(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    bound = text_bound(tokenizer)
    longest = max(map(len, tokenizer.get_vocab()))
    assert bound == TextBound(longest * (4 if make is composing else 1), make is not swallowing)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(text=TEXTS)
    @example("\u1f82" * 9)
    @example("\u03b1\u0313\u0300\u0345" * 99)  # four become one
    @example(" " * 500 + "<|end|>" + " " * 500)
    @example("the " * 100)
    @example("\N{PILE OF POO}\0" * 50)
    def fewest(text: str) -> None:
        assert bound.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids)

    fewest()


@pytest.mark.parametrize("make", UNCERTAIN)
def test_tokenizers_of_which_nothing_is_certain(make: Callable[[], Tokenizer]) -> None:
    assert text_bound(make()) == TextBound(UNKNOWN)


def test_ids_with_gaps() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "aaaaaaaaaa": 99}
    assert text_bound(Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))) == TextBound(UNKNOWN)


@pytest.mark.parametrize("size", [1, 2, 37])
def test_numbers(size: int) -> None:
    assert [TextBound(size).fewest_tokens("a " * half) for half in (0, size, 50 * size)] == [0, 2, 100]
    assert TextBound(size, counts_spaces=False).fewest_tokens("a " * size) == 1


def test_a_long_text_is_not_tokenized(vlm: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a text was tokenized that fits nowhere")

    tokenizer, rows = vlm.tokenizer, vlm.manifest.capacities.rows[0]
    long = "a" * (rows * tokenizer.bound.per_token + 1)
    monkeypatch.setattr(tokenizer, "encode", never)
    for prompt in (long, RawText(long), [{"role": "user", "content": [{"type": "text", "text": long}]}]):
        with pytest.raises(PromptError, match=rf"too long: \d+ characters are \d+ text tokens at least, and there are {rows} "):
            vlm.prepare(prompt)
