"""A CLIP vision tower: its dimensions, and the inputs and outputs of its graph.

Apart from the graph itself (clip.py), so that a bundle is opened without onnxscript.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.needs import CLS_FEATURES
from sts_export.graphs.towers.observed import Depths, observed_specs


@dataclass(frozen=True)
class ClipVisionConfig:
    """A CLIP vision tower.

    ``feature_layers`` is the number of encoder layers that run before the features are taken (LLaVA's
    ``vision_feature_layer = -2`` of n layers: n - 1).
    """

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    feature_layers: int
    layer_norm_eps: float
    activation: str
    num_channels: int = 3
    kind: Literal["clip"] = "clip"

    @property
    def grid_side(self) -> int:
        """Patches along one side of a crop."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches, and so visual tokens, of one crop."""
        return self.grid_side**2

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def depths(self) -> Depths:
        """Layers that are looked at: the feature layer, one after a quarter of the way there and one after three eighths.

        Halves round up.  Of the 23 layers of CLIP-L in LLaVA: 23, 6 and 9.
        """
        layers = self.feature_layers
        return Depths(layers, max(1, (2 * layers + 4) // 8), max(1, (6 * layers + 8) // 16))


def clip_encoder_contract(vision: ClipVisionConfig, dtype: Dtype, needs: Set[str] = frozenset()) -> GraphContract:
    """pixel_values -> visual_features, and what stage 1 needs besides them.

    Inputs:
        pixel_values: [crops, channels, size, size]
    Outputs:
        visual_features: [crops, patches, width]
        and of ``needs``, in this order:
        cls_attention, early_cls_attention: [crops, patches] float32; attention of CLS to the patches, mean over heads
        received_attention, early_received_attention, middle_received_attention: [crops, patches] float32; attention that
            a patch receives, mean over heads and over the patches as queries
        mean_keys: [crops, patches, head_dim] float32; key projection with its bias, mean over heads
        cls_features: [crops, width]; the CLS token
    """
    crops, patches, width = "crops", vision.num_patches, vision.hidden_size
    pixels = TensorSpec("pixel_values", (crops, vision.num_channels, vision.image_size, vision.image_size), dtype)
    features = TensorSpec("visual_features", (crops, patches, width), dtype)
    outputs = [features, *observed_specs(needs, (crops, patches), vision.head_dim)]
    if CLS_FEATURES in needs:
        outputs.append(TensorSpec(CLS_FEATURES, (crops, width), dtype))
    return GraphContract("vision_encoder", (pixels,), tuple(outputs))
