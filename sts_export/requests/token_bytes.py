"""The bytes that one token stands for, which need not be whole characters.

A tokenizer's decoder works on lists of tokens and gives text.  Its steps that look at one token at a time are followed here, on
bytes.  Sources: decoders of the tokenizers library (byte_level.rs, byte_fallback.rs, metaspace.rs, strip.rs).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
Step = Callable[["str | bytes", bool], "str | bytes"]


@dataclass(frozen=True)
class TokenText:
    """One token as OpenAI's ``logprobs.content`` tells it.

    Args:
        text: its characters; U+FFFD where its bytes are none by themselves.
        bytes: the UTF-8 bytes that it stands for.
    """

    text: str
    bytes: tuple[int, ...]


class TokenBytes:
    """Bytes of the tokens of a tokenizer.  Threads may share it.

    The bytes of an answer's tokens, special ones aside, are its text in UTF-8, where they are valid UTF-8.

    Args:
        tokenizer: ``tokenizers.Tokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        decoder = tokenizer.decoder
        steps = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
        self._steps: list[Step] | None = None if None in steps else [step for step in steps if step is not None]

    def of(self, token_id: int, *, first: bool = False) -> bytes:
        """Of a special token those of its name; none of an id that the tokenizer does not have.

        Args:
            first: only special tokens stand before it in the answer.  Decoders of SentencePiece drop the space it begins with.
        """
        if token_id in self._special:
            return str(self._special[token_id]).encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._steps is None:  # a decoder that is none of byte pairs or SentencePiece: whole characters
            return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).encode()
        value: str | bytes = token
        for step in self._steps:
            value = step(value, first)
        return value if isinstance(value, bytes) else value.encode()

    def is_special(self, token_id: int) -> bool:
        """Whether texts leave it out."""
        return token_id in self._special

    def text_of(self, token_id: int, *, first: bool = False) -> TokenText:
        """As for :meth:`of`."""
        found = self.of(token_id, first=first)
        return TokenText(found.decode(errors="replace"), tuple(found))


def _steps(decoder: dict[str, Any]) -> list[Step | None]:
    """What a decoder does to one token; None for what it does otherwise."""
    kind = decoder["type"]
    if kind == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    if kind == "Fuse":
        return []
    if kind == "ByteLevel":
        return [_from_byte_level]
    if kind == "ByteFallback":
        return [_from_byte_token]
    if kind == "Replace" and "String" in decoder["pattern"]:
        return [_replace(decoder["pattern"]["String"], decoder["content"])]
    if kind == "Strip" and decoder["stop"] == 0:
        return [_strip(decoder["content"], decoder["start"])]
    if kind == "Metaspace":
        return [_metaspace(decoder["replacement"], decoder["prepend_scheme"] != "never")]
    return [None]


def _from_byte_level(value: str | bytes, first: bool) -> str | bytes:
    """A token with other characters than the 256 is its own text."""
    if isinstance(value, bytes):
        return value
    table = byte_level_alphabet()
    return bytes(table[character] for character in value) if all(character in table for character in value) else value


def _from_byte_token(value: str | bytes, first: bool) -> str | bytes:
    found = _BYTE_TOKEN.fullmatch(value) if isinstance(value, str) else None
    return bytes([int(found[1], 16)]) if found else value


def _replace(old: str, new: str) -> Step:
    return lambda value, first: value.replace(old, new) if isinstance(value, str) else value


def _strip(character: str, most: int) -> Step:
    def strip(value: str | bytes, first: bool) -> str | bytes:
        text: Any = value
        own: Any = character if isinstance(value, str) else character.encode()
        for _ in range(most if first else 0):
            text = text.removeprefix(own)
        return text  # type: ignore[no-any-return]

    return strip


def _metaspace(marker: str, drops_first: bool) -> Step:
    """The decoder drops every marker of the first token, however many there are."""

    def spaces(value: str | bytes, first: bool) -> str | bytes:
        return value.replace(marker, "" if first and drops_first else " ") if isinstance(value, str) else value

    return spaces


@cache
def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte, as byte-level tokenizers write bytes; GPT-2's ``bytes_to_unicode``, turned round.

    Printable bytes of Latin-1 are their own characters; the others take those from U+0100 on, in their order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), ord("\xff") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
