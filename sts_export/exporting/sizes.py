"""How large prompts, answers and pictures may be where the request does not say: as large as by default, or what fits.

All numbers are positions of the decoder, of which text, answer and pictures together may take ``limit``.
"""

from __future__ import annotations

DEFAULT_PROMPT_TOKENS = 512
DEFAULT_NEW_TOKENS = 512
# Less than this is not chosen by itself: a template alone may take as much, and a picture of 8 x 8 tokens shows little.
MIN_TEXT_TOKENS = 32
MIN_VISUAL_TOKENS = 64


def fit_picture(limit: int, largest: int, prompt: int | None, new: int | None) -> int:
    """Visual tokens of the largest picture that is taken; may be 0 or less where nothing is left.

    Pictures give way before prompts and answers do, but keep half of what the given numbers leave.

    Args:
        largest: visual tokens of the largest picture that the image processor makes by itself.
        prompt, new: tokens that were asked for; None is open.
    """
    by_default = limit - _or(prompt, DEFAULT_PROMPT_TOKENS) - _or(new, DEFAULT_NEW_TOKENS)
    if prompt is None or new is None:
        by_default = max(by_default, (limit - _or(prompt, 0) - _or(new, 0)) // 2)
    return min(largest, by_default)


def fit_text(room: int, prompt: int | None, new: int | None) -> tuple[int, int]:
    """Tokens of prompts and answers, at most their defaults where they are open; may be 0 or less where nothing is left.

    Where both are open and do not fit, they get half each, and prompts the odd one.

    Args:
        room: positions that pictures leave.
        prompt, new: tokens that were asked for; None is open.
    """
    if new is None:
        share = room // 2 if prompt is None else room - prompt
        new = min(DEFAULT_NEW_TOKENS, share)
    if prompt is None:
        prompt = min(DEFAULT_PROMPT_TOKENS, room - new)
    return prompt, new


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
