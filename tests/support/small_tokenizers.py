"""Tokenizers of a few hundred tokens, trained in milliseconds: Llama's kind and Qwen's, with an image token of any text."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = ["USER: what is on the table? ASSISTANT: a red cube and a blue ball.", "the cat sat on the mat", "héllo wörld"] * 5


def llama_like(image_token: str = "<image>") -> Tokenizer:
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trained.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=450, show_progress=False, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))]
        ),
    )
    # The trainer only takes the byte tokens as special ones; in Llama's tokenizer they are plain vocabulary.
    content = json.loads(trained.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(image_token, special=True, normalized=False)])
    return tokenizer


def byte_level(image_token: str = "<image>") -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<s>", "</s>", image_token],
        ),
    )
    return tokenizer


TOKENIZERS = {"llama": llama_like, "byte-level": byte_level}
