"""The vision tower of Qwen2.5-VL: its dimensions, and the inputs and outputs of its graph.

Apart from the graph itself (qwen2_5_vl.py), so that a bundle is opened without onnxscript.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.towers.observed import Depths, observed_specs


@dataclass(frozen=True)
class QwenVisionConfig:
    """The vision tower of Qwen2.5-VL: any resolution, window attention but in a few layers, and a 2 x 2 merger.

    ``window_patches`` is the side of an attention window in patches (112 pixels / 14 = 8); ``full_attention_layers`` are
    the layers that attend to the whole image; ``max_grid_side`` bounds a side of the image in patches.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window_patches: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    full_attention_layers: tuple[int, ...]
    out_hidden_size: int
    activation: str
    max_grid_side: int
    rms_norm_eps: float = 1e-6
    num_channels: int = 3
    kind: Literal["qwen2_5_vl"] = "qwen2_5_vl"

    @property
    def patch_values(self) -> int:
        """Numbers in one patch of pixel_values."""
        return self.num_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def depths(self) -> Depths:
        """Layers that are looked at, of those that attend to the whole image: the last, the first, the one nearest to half.

        Of two as near the earlier.  Of the 32 layers of Qwen2.5-VL: 32, 8 and 16.

        Raises:
            ValueError: no layer does.
        """
        full = sorted(layer + 1 for layer in self.full_attention_layers)
        if not full:
            raise ValueError("no layer of the vision tower attends to the whole image")
        return Depths(full[-1], full[0], min(full, key=lambda layer: abs(2 * layer - self.num_layers)))


def qwen_encoder_contract(vision: QwenVisionConfig, dtype: Dtype, needs: Set[str] = frozenset()) -> GraphContract:
    """Patches of one image -> visual_features of its merged tokens, in raster order.

    Inputs:
        pixel_values: [patches, channels * temporal_patch * patch * patch], in the processor's order: the patches of one
            merged token are neighbours
        grid_position_ids: [patches, 2] int64; row and column of each patch
        window_index: [windows, window_patches ** 2] int64; the patches of each window, then any patch as padding
        window_mask: [windows, window_patches ** 2] bool; false for padding
        window_slot: [patches] int64; where each patch stands in the flattened window_index
    Outputs:
        visual_features: [1, tokens, out_width]
        and of ``needs``, in this order, each the mean over a token's patches:
        received_attention, early_received_attention, middle_received_attention: [1, tokens] float32; attention that a patch
            receives, mean over heads and over all patches as queries
        mean_keys: [1, tokens, head_dim] float32; key projection with its bias, before rotary positions, mean over heads
    """
    window = vision.window_patches**2
    inputs = (
        TensorSpec("pixel_values", ("patches", vision.patch_values), dtype),
        TensorSpec("grid_position_ids", ("patches", 2), "int64"),
        TensorSpec("window_index", ("windows", window), "int64"),
        TensorSpec("window_mask", ("windows", window), "bool"),
        TensorSpec("window_slot", ("patches",), "int64"),
    )
    features = TensorSpec("visual_features", (1, "tokens", vision.out_hidden_size), dtype)
    outputs = (features, *observed_specs(needs, (1, "tokens"), vision.head_dim))
    return GraphContract("vision_encoder", inputs, outputs)
