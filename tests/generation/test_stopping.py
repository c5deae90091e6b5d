"""TextStream: any tokens, any stop strings, pieces joined = whole text cut before the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sts_export.errors import RequestError
from sts_export.generation.stopping import TextStream


class Detok:
    """A bare tokenizer under the names TextStream asks for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.vocabulary = vocabulary
        self.byte_token_ids = frozenset(id for token, id in vocabulary.items() if token.startswith("<0x"))
        self.size = len(vocabulary)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def ids(self, *tokens: str) -> list[int]:
        return [self.vocabulary[token] for token in tokens]


def byte_level() -> Detok:
    words = ["he", "Ġthe", "Ġtable", "lo", "ĠĠ", "ĊĊ", "Ã©", "âĤ", "Ġâ", "stop", "USER", ":", "ï¿½"]
    tokens = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *words])
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<image>", special=True)])
    tokenizer.add_tokens(["<think>", "a b"])
    return Detok(tokenizer)


def llama_like() -> Detok:
    pieces = [
        "▁",
        "▁▁",
        "▁the",
        "▁table",
        "the",
        "table",
        "a",
        "ab",
        "b",
        ".",
        "▁.",
        "US",
        "ER",
        ":",
        "é",
        "\N{REPLACEMENT CHARACTER}",
        "\n",
    ]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE({token: id for id, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", "<image>")])
    return Detok(tokenizer)


def metaspace() -> Detok:
    pieces = ["▁", "▁▁", "▁the", "the", "a", "▁a", "b"]
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return Detok(tokenizer)


DETOKS = {"byte-level": byte_level(), "llama": llama_like(), "metaspace": metaspace()}
STOPS = ["the", "USER:", "\n", "\n\n", " ", "a", "ab", "b", "aba", " t", "é", "€", "\N{REPLACEMENT CHARACTER}", "le the", ". "]


def expected(text: str, stops: Sequence[str]) -> str:
    """Character by character: cut where a stop string is complete first, the longest of them."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def run(detok: Detok, ids: Sequence[int], stops: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(detok, stops)
    pieces = []
    for id in ids:
        pieces.append(stream.push(id))
        assert stream.text == "".join(pieces)
    pieces.append(stream.finish())
    return pieces, stream


@pytest.mark.parametrize("name", DETOKS)
@given(data=st.data())
@settings(deadline=None, derandomize=True, max_examples=400)
def test_pieces_joined_are_the_whole_text(name: str, data: st.DataObject) -> None:
    detok = DETOKS[name]
    # Half of the tokens are words and special tokens, which lie at the end of the vocabulary.
    token = st.integers(0, detok.size - 1) | st.integers(max(0, detok.size - 25), detok.size - 1)
    ids = data.draw(st.lists(token, max_size=25))
    whole = detok.decode(ids)
    cuts = st.tuples(st.integers(0, max(0, len(whole) - 1)), st.integers(1, 6)).map(lambda cut: whole[cut[0] : sum(cut)])
    stops = data.draw(st.lists(st.sampled_from(STOPS) | cuts.filter(bool), max_size=4))
    pieces, stream = run(detok, ids, stops)
    assert "".join(pieces) == stream.text == expected(whole, stops)
    assert stream.stopped == any(stop in whole for stop in stops)


@given(text=st.text(max_size=12), stops=st.lists(st.text(min_size=1, max_size=3), max_size=3))
@settings(deadline=None, derandomize=True, max_examples=300)
@example(text="漢字€", stops=["字"])
def test_text_byte_by_byte(text: str, stops: list[str]) -> None:
    detok = DETOKS["llama"]
    ids = [id for byte in text.encode() for id in detok.ids(f"<0x{byte:02X}>")]
    pieces, _ = run(detok, ids, stops)
    assert "".join(pieces) == expected(detok.decode(ids), stops)


def test_words_come_at_once() -> None:
    detok = DETOKS["llama"]
    pieces, _ = run(detok, detok.ids("▁the", "▁table", ".", "</s>"))
    assert pieces == ["the", " table", ".", "", ""]
    detok = DETOKS["byte-level"]
    pieces, _ = run(detok, detok.ids("he", "lo", "Ġthe"))
    assert pieces == ["he", "lo", " the", ""]


def test_characters_come_whole() -> None:
    detok = DETOKS["byte-level"]
    pieces, _ = run(detok, detok.ids("âĤ", "¬", "he"))
    assert pieces == ["", "€", "he", ""]
    detok = DETOKS["llama"]
    pieces, _ = run(detok, detok.ids("a", "<0xE2>", "<0x82>", "<0xAC>", "b"))
    assert pieces == ["a", "", "", "", "€b", ""]


def test_incomplete_character_at_the_end_is_shown_at_the_end() -> None:
    detok = DETOKS["byte-level"]
    pieces, _ = run(detok, detok.ids("he", "âĤ"))
    assert pieces == ["he", "", "\N{REPLACEMENT CHARACTER}"]


def test_a_byte_that_spoils_the_run_before_it() -> None:
    detok = DETOKS["llama"]
    pieces, _ = run(detok, detok.ids("<0x41>", "<0xFF>"))
    assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}" * 2


def test_possible_stop_strings_are_held_back() -> None:
    detok = DETOKS["llama"]
    pieces, stream = run(detok, detok.ids("a", "US", "ER", "b", "US"), ["USER:"])
    assert pieces == ["a", "", "", "USERb", "", "US"]
    assert not stream.stopped
    pieces, stream = run(detok, detok.ids("a", "US", "ER", ":", "b"), ["USER:"])
    assert pieces == ["a", "", "", "", "", ""]
    assert stream.stopped and stream.text == "a"


def test_stop_string_in_the_held_tail_is_found_at_the_end() -> None:
    detok = DETOKS["llama"]
    pieces, stream = run(detok, detok.ids("a", "<0x0A>"), ["\n"])
    assert pieces == ["a", "", ""] and stream.stopped


def test_first_complete_stop_string_wins() -> None:
    detok = DETOKS["llama"]
    assert run(detok, detok.ids("a", "b", "a", "b"), ["abab", "b"])[1].text == "a"
    assert run(detok, detok.ids("ab", "ab"), ["ab", "b"])[1].text == ""


def test_one_string_is_one_stop() -> None:
    detok = DETOKS["llama"]
    assert run(detok, detok.ids("▁the", "▁table"), " table")[1].text == "the"


@pytest.mark.parametrize("stop", [[""], ["a", ""], [3], ""])
def test_wrong_stop_strings(stop: Sequence[str]) -> None:
    with pytest.raises(RequestError) as caught:
        TextStream(DETOKS["llama"], stop)
    assert "\n" not in str(caught.value)


def test_long_answers_decode_only_their_end() -> None:
    class Counting(Detok):
        longest = 0

        def decode(self, ids: Sequence[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return super().decode(ids)

    detok = Counting(DETOKS["llama"].tokenizer)
    run(detok, detok.ids("▁the", "▁table", "<0x0A>", "</s>") * 100)
    assert detok.longest <= 10
