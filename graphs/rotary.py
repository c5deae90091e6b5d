"""Rotary position tables, the same on every machine.

transformers computes ``1 / theta ** (i / width)`` and its products with the positions in float32.  float32 ``pow``, ``cos`` and
``sin`` round their last bit differently from one processor or library to the next, and a position multiplies that bit.  Here
each of them is computed in float64 and rounded to float32 once, which is the result that float32 libraries approximate.
Source: transformers ``modeling_rope_utils.py`` and ``models/llama/modeling_llama.py`` (LlamaRotaryEmbedding).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def inverse_frequencies(width: int, theta: float, factor: float = 1.0) -> NDArray[np.float32]:
    """Radians that each pair of channels turns from one position to the next, float32 [width / 2].

    Args:
        width: channels that are rotated together; a head, or the half of it that one axis has.
        theta: base of the frequencies.
        factor: linear position scaling; 1 for none.
    """
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    period = (np.float64(theta) ** exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / period / np.float32(factor)


def rotary_tables(inverse: NDArray[np.float32], positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of positions 0 to ``positions`` - 1, float32 [positions, width / 2].

    Args:
        inverse: float32 [width / 2] of :func:`inverse_frequencies`.
    """
    angles = (np.arange(positions, dtype=np.float32)[:, None] * inverse[None, :]).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
