"""Stand-ins for the public tokenizers: right size, right special tokens with the right ids, another vocabulary."""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from sts_export.testing.checkpoints.tokenizers import byte_level_tokenizer, byte_level_vocabulary

# In the order of their ids: 151643 …
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_QWEN_ADDED = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


def _filled(vocabulary: dict[str, int], size: int) -> dict[str, int]:
    return vocabulary | {f"<unused{index}>": index for index in range(len(vocabulary), size)}


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """32000 tokens, then <image> and <pad>, as in the LLaVA checkpoints."""
    vocabulary, merges = byte_level_vocabulary(32000, ("<unk>", "<s>", "</s>"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(_filled(vocabulary, 32000), merges, start="<s>"),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    fast.add_special_tokens({"pad_token": "<pad>"})
    return fast


def qwen_tokenizer() -> Qwen2Tokenizer:
    """151643 tokens, 14 special ones, 8 more."""
    vocabulary, merges = byte_level_vocabulary(151643)
    tokenizer = Qwen2Tokenizer(
        vocab=_filled(vocabulary, 151643),
        merges=merges,
        unk_token=None,
        eos_token=None,
        pad_token=None,
        model_max_length=131072,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(_QWEN_SPECIAL)})
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in _QWEN_ADDED])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer
