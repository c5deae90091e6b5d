"""Qwen2.5-VL's vision tower: one crop of the picture's own resolution, whose patches are merged in squares."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sts_export.errors import CheckpointError
from sts_export.families.dimensions import LARGE, between, check_layers, small
from sts_export.families.towers.protocol import FEATURES, Pictures, SizeRanges, check_needs
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract
from sts_export.graphs.needs import EARLY_RECEIVED_ATTENTION, MEAN_KEYS, MIDDLE_RECEIVED_ATTENTION, RECEIVED_ATTENTION
from sts_export.graphs.towers.observed import observed_bytes
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig, qwen_encoder_contract

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.media.prepared import ImagePreparer
    from sts_export.media.processor import ImageProcessor


_OF_FULL_ATTENTION = (RECEIVED_ATTENTION, EARLY_RECEIVED_ATTENTION, MIDDLE_RECEIVED_ATTENTION, MEAN_KEYS)


@dataclass(frozen=True)
class QwenTower:
    """See :class:`sts_export.families.towers.protocol.Tower`."""

    vision: QwenVisionConfig
    pictures: Pictures

    config: ClassVar[type[QwenVisionConfig]] = QwenVisionConfig

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({FEATURES, *_OF_FULL_ATTENTION} if self.vision.full_attention_layers else {FEATURES})

    def check(self) -> None:
        vision = self.vision
        check_layers(vision, vision.num_layers)
        for name, limit in (("patch_size", 1024), ("temporal_patch_size", 64), ("merge_size", 64)):
            between(f"vision {name}", getattr(vision, name), limit)
        between("out_hidden_size", vision.out_hidden_size, LARGE)
        between("window_size in patches", vision.window_patches, 1024)
        between("image side in patches", vision.max_grid_side, 1 << 20)
        small("vision rms_norm_eps", vision.rms_norm_eps)
        if not all(0 <= layer < vision.num_layers for layer in vision.full_attention_layers):
            raise ValueError(f"fullatt_block_indexes {list(vision.full_attention_layers)} names layers that are not there")
        if (vision.hidden_size // vision.num_heads) % 4 or vision.window_patches % vision.merge_size:
            raise ValueError("vision heads or windows do not divide evenly")
        if self.pictures.tile_resolutions or self.pictures.max_newlines:
            raise ValueError("tiles of a tower that takes any resolution")

    @property
    def width(self) -> int:
        return self.vision.out_hidden_size

    @property
    def num_layers(self) -> int:
        return self.vision.num_layers

    @property
    def max_crops(self) -> int:
        return 1

    @property
    def rows_per_crop(self) -> int:
        return self.pictures.max_tokens

    @property
    def is_fixed_size(self) -> bool:
        return False

    @property
    def _max_patches(self) -> int:
        return self.pictures.max_tokens * self.vision.merge_size**2

    @property
    def attention_rows(self) -> tuple[int, int]:
        rows = self._max_patches
        return rows, rows if self.vision.full_attention_layers else self.vision.window_patches**2

    def scratch_bytes(self, needs: Set[str]) -> int:
        return observed_bytes(needs, 1, self.vision.num_heads, self._max_patches, self.vision.head_dim)

    def profile(self) -> SizeRanges:
        """From one token to the largest image; a strip has more windows than a square, at most one a token."""
        vision, patches, side = self.vision, self._max_patches, self.vision.window_patches
        windows = min(self.pictures.max_tokens, patches // side**2 + 2 * vision.max_grid_side // side + 1)
        return {"patches": (vision.merge_size**2, patches, patches), "windows": (1, max(1, windows // 2), windows)}

    def derived_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"tokens": sizes["patches"] // self.vision.merge_size**2}

    def contract(self, dtype: Dtype, needs: Set[str] = frozenset()) -> GraphContract:
        check_needs(self, needs)
        return qwen_encoder_contract(self.vision, dtype, needs)

    def graph(self, dtype: Dtype, prefix: str, needs: Set[str] = frozenset()) -> ir.Model:
        check_needs(self, needs)
        from sts_export.graphs.towers.qwen2_5_vl import qwen_encoder

        return qwen_encoder(self.vision, dtype, prefix=prefix, needs=needs, max_patches=self._max_patches)

    def check_processor(self, processor: Any, folder: Path) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            size, own = getattr(self.vision, name), getattr(processor, name)
            if own != size:
                raise CheckpointError(
                    f"the image processor in {folder} has {name} {own!r}, the vision tower {size}; "
                    "use the processor files of this model"
                )

    def images(self, processor: ImageProcessor) -> ImagePreparer:
        from sts_export.media.qwen import QwenImages

        return QwenImages(processor, self.vision, self.pictures.max_tokens)


TOWER = QwenTower
