"""How few tokens a text can have, without tokenizing it: a text of megabytes takes minutes to tokenize, and fits nowhere.

A token stands for no more characters than the longest one of the vocabulary has, unless a step of the tokenizer drops or joins
characters.  Steps that do not are listed here; with any other one nothing is certain.  Sources: models, normalizers,
pre-tokenizers and added_vocabulary.rs of the tokenizers library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNKNOWN = 4096  # characters a token, where nothing is certain: words of spaces, mostly
# Of NFC a character is made of up to four: none has a longer canonical decomposition.
_NORMALIZERS = {"NFC": 4, "NFD": 1, "NFKD": 1, "Prepend": 1, "ByteLevel": 1}
_PRE_TOKENIZERS = frozenset({"ByteLevel", "Metaspace", "Digits"})
_ALL_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144)]  # letters of ByteLevel


@dataclass(frozen=True)
class TextBound:
    """What one token stands for at most.

    Args:
        per_token: characters.
        counts_spaces: whether white space is among them; where special tokens swallow what stands around them it is not.
    """

    per_token: int
    counts_spaces: bool = True

    def fewest_tokens(self, text: str) -> int:
        """The text has at least so many tokens."""
        length = len(text) if self.counts_spaces else sum(map(len, text.split()))
        return -(-length // self.per_token)


def text_bound(tokenizer: Any) -> TextBound:
    """Of a ``tokenizers.Tokenizer``; some 0.1 s for a large vocabulary."""
    joined = _joined_by_normalizers(_state(tokenizer.normalizer))
    if joined is None or not _keeps_all(_state(tokenizer.pre_tokenizer)) or not _has_token_for_all(tokenizer):
        return TextBound(UNKNOWN)
    # One by one: the whole vocabulary as a dictionary is 35 MB for Qwen2.5-VL.
    added = tokenizer.get_added_tokens_decoder()
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    found = (tokenizer.id_to_token(token) for token in range(max([size, *(token + 1 for token in added)])))
    lengths = [len(token) for token in found if token is not None]
    if len(lengths) < size:  # its ids have gaps, and others are beyond
        return TextBound(UNKNOWN)
    longest = max(lengths, default=1)
    return TextBound(max(1, longest) * joined, not any(token.lstrip or token.rstrip for token in added.values()))


def _state(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.__getstate__())


def _joined_by_normalizers(state: Mapping[str, Any] | None) -> int | None:
    """Characters that may become one; None where some may vanish."""
    if state is None:
        return 1
    if state["type"] == "Sequence":
        joined = 1
        for part in state["normalizers"]:
            own = _joined_by_normalizers(part)
            if own is None:
                return None
            joined *= own
        return joined
    if state["type"] == "Replace":
        replaced = state["pattern"].get("String")
        return 1 if replaced is not None and len(replaced) <= len(state["content"]) else None
    return _NORMALIZERS.get(state["type"])


def _keeps_all(state: Mapping[str, Any] | None) -> bool:
    if state is None:
        return True
    if state["type"] == "Sequence":
        return all(map(_keeps_all, state["pretokenizers"]))
    return state["type"] in _PRE_TOKENIZERS or (state["type"] == "Split" and state["behavior"] != "Removed")


def _has_token_for_all(tokenizer: Any) -> bool:
    """No character is dropped, and no run of unknown ones is a single token."""
    model = tokenizer.model
    kind = type(model).__name__
    if kind == "BPE" and model.unk_token is not None and not model.fuse_unk:
        return True
    if kind not in ("BPE", "Unigram"):
        return False
    if model.byte_fallback and all(tokenizer.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256)):
        return True
    return '"ByteLevel"' in json.dumps([_state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer)]) and all(
        tokenizer.token_to_id(chr(letter)) is not None for letter in _ALL_BYTES
    )
