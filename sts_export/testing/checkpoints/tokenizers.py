"""Small byte-level BPE tokenizers with the special tokens of the Llama and Qwen families."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
IMAGE_TOKEN = SPECIAL_TOKENS.index("<image>")
# Every prefix of these words is a token, so that byte-pair merging has something to do.
WORDS = ["the", "USER", "ASSISTANT", "What", "Where", "is", "on", "in", "of", "table", "picture", "cat", "How", "Describe"]


def byte_level_vocabulary(size: int, first: Sequence[str] = ()) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges: ``first``, the 256 bytes, prefixes of WORDS, at most ``size`` in all."""
    vocabulary = {token: index for index, token in enumerate((*first, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(prefix + word for word in WORDS for prefix in ("", "Ġ")):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary and len(vocabulary) < size:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    return vocabulary, merges


def byte_level_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]], start: str) -> Tokenizer:
    """Puts ``start`` before every text."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, vocabulary[start])])
    return tokenizer


def llama_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """With <s> before every text, as Llama's; <image> is token ``IMAGE_TOKEN``."""
    vocabulary, merges = byte_level_vocabulary(vocab_size, SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(vocabulary, merges, start="<s>"),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
