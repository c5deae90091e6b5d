"""Random-weight checkpoints in Hugging Face format, random pictures and prompts: everything from a seed.

Weights are drawn so that a mistake shows: attention rows and logits vary strongly, norms are not 1, biases are not 0.
One file a family; every ``write_random_*`` takes a folder and a frozen dataclass, and the same dataclass always gives the
same files.
"""

from sts_export.testing.checkpoints.llava import CHAT_TEMPLATE, Layout, RandomLlava, write_random_llava
from sts_export.testing.checkpoints.llava_next import RandomLlavaNext, write_random_llava_next
from sts_export.testing.checkpoints.pictures import random_image, random_prompt
from sts_export.testing.checkpoints.qwen2_5_vl import QWEN_SPECIAL_TOKENS, RandomQwen25VL, write_random_qwen2_5_vl
from sts_export.testing.checkpoints.selectors import write_random_selector
from sts_export.testing.checkpoints.tokenizers import IMAGE_TOKEN, SPECIAL_TOKENS, WORDS

__all__ = [
    "CHAT_TEMPLATE",
    "IMAGE_TOKEN",
    "QWEN_SPECIAL_TOKENS",
    "SPECIAL_TOKENS",
    "WORDS",
    "Layout",
    "RandomLlava",
    "RandomLlavaNext",
    "RandomQwen25VL",
    "random_image",
    "random_prompt",
    "write_random_llava",
    "write_random_llava_next",
    "write_random_qwen2_5_vl",
    "write_random_selector",
]
