"""Where the patches of one still image stand: their coordinates and their attention windows, for Qwen2.5-VL's tower.

The image processor lists the patches of one merged token (``merge x merge`` of them, in raster order) next to each other,
and the merged tokens in raster order.  The encoder keeps that order; its window-attention layers gather windows out of it.
Source: transformers ``vision_utils.py`` (get_vision_position_ids, get_vision_window_index).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EncoderIndices:
    """The encoder's inputs besides pixel_values; see ``qwen_encoder_contract`` in graphs/towers/qwen2_5_vl_contract.py.

    grid_position_ids: [patches, 2] int64; row and column of each patch
    window_index: [windows, window_patches ** 2] int64; the patches of each window, ascending, then patch 0 as padding
    window_mask: [windows, window_patches ** 2] bool; false for padding
    window_slot: [patches] int64; where each patch stands in the flattened window_index
    """

    grid_position_ids: NDArray[np.int64]
    window_index: NDArray[np.int64]
    window_mask: NDArray[np.bool_]
    window_slot: NDArray[np.int64]


def encoder_indices(height: int, width: int, *, merge: int, window_patches: int) -> EncoderIndices:
    """Indices of an image of ``height x width`` patches; windows are smaller at its right and lower edges.

    Args:
        height, width: the image in patches, multiples of ``merge``.  The caller sees to it that neither exceeds the
            encoder's ``max_grid_side``: a larger coordinate has no row in its rotary tables.
        merge: side of a merged token in patches.
        window_patches: side of a window in patches, a multiple of ``merge``.
    """
    if merge < 1 or window_patches < 1 or window_patches % merge:
        raise ValueError(f"windows of {window_patches} patches do not hold whole tokens of {merge} x {merge} patches")
    if height < 1 or width < 1 or height % merge or width % merge:
        raise ValueError(f"{height} x {width} patches are not whole tokens of {merge} x {merge} patches")
    positions = _grid_positions(height, width, merge)
    across, down = -(-width // window_patches), -(-height // window_patches)
    window = positions[:, 0] // window_patches * across + positions[:, 1] // window_patches  # of each patch
    # Stable: a window lists its patches in the processor's order.  The windows stand in raster order, none is empty.
    by_window = np.argsort(window, kind="stable")
    filled = np.bincount(window, minlength=down * across)
    mask: NDArray[np.bool_] = np.arange(window_patches**2) < filled[:, None]
    index = np.zeros(mask.shape, dtype=np.int64)
    index[mask] = by_window
    slot = np.empty(height * width, dtype=np.int64)
    slot[by_window] = np.flatnonzero(mask)
    return EncoderIndices(positions, index, mask, slot)


def _grid_positions(height: int, width: int, merge: int) -> NDArray[np.int64]:
    """[patches, 2]: row and column of each patch, in the processor's order."""
    blocks = (height // merge, merge, width // merge, merge)
    grid: NDArray[Any] = np.indices((height, width)).reshape(2, *blocks).swapaxes(2, 3)
    return np.ascontiguousarray(grid.reshape(2, -1).T, dtype=np.int64)
