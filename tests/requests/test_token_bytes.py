"""Bytes of single tokens: joined, they are what the tokenizer's own decoder makes of the whole list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sts_export.requests.token_bytes import TokenBytes, byte_level_alphabet
from tests.support.small_tokenizers import byte_level, llama_like


def metaspace(scheme: Any) -> Tokenizer:
    """Llama's kind with the decoder that SentencePiece converters of other libraries write."""
    tokenizer = llama_like()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return tokenizer


def with_plain_added() -> Tokenizer:
    """Byte-level, with added tokens that are text."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("漢 字", special=False)])
    return tokenizer


TOKENIZERS = {
    "llama": llama_like(),
    "metaspace-always": metaspace("always"),
    "metaspace-never": metaspace("never"),
    "byte-level": byte_level(),
    "byte-level-added": with_plain_added(),
}
WORDS = st.sampled_from(["the cat", " on", "  ", "table? ", "héllo", "漢字", "\N{GRINNING FACE}", "\n", "\t", "<0x41>", "\x00"])
TEXTS = st.lists(WORDS | st.text(max_size=3), max_size=8).map("".join)


def joined(tokens: TokenBytes, special: set[int], ids: list[int]) -> bytes:
    """As a reader of an answer joins them: special tokens are no text."""
    plain = [token for token in ids if token not in special]
    return b"".join(tokens.of(token, first=place == 0) for place, token in enumerate(plain))


def special_of(tokenizer: Tokenizer) -> set[int]:
    return {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS)
@settings(deadline=None, derandomize=True, max_examples=150)
def test_the_tokens_of_a_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text).ids
    found = joined(TokenBytes(tokenizer), special_of(tokenizer), ids)
    assert found.decode() == tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(deadline=None, derandomize=True, max_examples=150)
def test_tokens_that_a_model_might_choose(name: str, data: st.DataObject) -> None:
    """In any order, special ones between them: where the bytes are valid UTF-8 they are the text."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=12))
    found = joined(TokenBytes(tokenizer), special_of(tokenizer), ids)
    try:
        text = found.decode()
    except UnicodeDecodeError:
        assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(ids)
    else:
        assert text == tokenizer.decode(ids)


def test_parts_of_a_character() -> None:
    for name in ("llama", "byte-level"):
        tokenizer = TOKENIZERS[name]
        tokens = TokenBytes(tokenizer)
        found = [tokens.text_of(token) for token in tokenizer.encode("漢").ids if token not in special_of(tokenizer)]
        assert bytes(byte for one in found for byte in one.bytes).decode().strip() == "漢"
        assert sum(one.text == "\N{REPLACEMENT CHARACTER}" for one in found) == 3


def test_the_space_before_a_word() -> None:
    tokenizer = TOKENIZERS["llama"]
    tokens, token = TokenBytes(tokenizer), tokenizer.get_vocab()["▁hé"]
    assert (tokens.of(token), tokens.of(token, first=True)) == (" hé".encode(), "hé".encode())
    assert tokens.text_of(token).text == " hé" and tokens.text_of(token).bytes == (0x20, 0x68, 0xC3, 0xA9)
    level = TokenBytes(TOKENIZERS["byte-level"])
    token = TOKENIZERS["byte-level"].get_vocab()["Ġthe"]
    assert level.of(token) == level.of(token, first=True) == b" the"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_are_their_names(name: str) -> None:
    tokens = TokenBytes(TOKENIZERS[name])
    for special in ("<s>", "</s>", "<image>"):
        found = tokens.text_of(TOKENIZERS[name].get_vocab()[special])
        assert found.text == special and bytes(found.bytes) == special.encode()


def test_ids_that_the_tokenizer_does_not_have() -> None:
    """Models have more rows than their tokenizers have tokens, and lists of likely tokens may name those."""
    assert TokenBytes(byte_level()).text_of(10**6).bytes == () and TokenBytes(byte_level()).of(10**6) == b""


def test_a_decoder_of_another_kind() -> None:
    tokenizer = Tokenizer(models.WordPiece({"the": 0, "##se": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    assert [TokenBytes(tokenizer).of(token) for token in (0, 1)] == [tokenizer.decode([token]).encode() for token in (0, 1)]
    plain = Tokenizer(models.WordLevel({"the": 0}, unk_token="the"))
    assert TokenBytes(plain).of(0) == b"the"


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    assert sorted(byte_level_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_level_alphabet().values()) == list(range(256))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in map(chr, range(0x250)):
        ((written, _),) = level.pre_tokenize_str(character)
        assert bytes(byte_level_alphabet()[one] for one in written).decode() == character
